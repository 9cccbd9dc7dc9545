"""What `vllm serve HEAD` reads to find the target by itself, as it does for heads of speculators.

vLLM takes the method, the number of tokens and the target's name from these keys, and everything else from the rest
of the config as long as that has a `model_type` at its top: without one it would build another from
`transformer_layer_config` alone, and lose our flags (`vllm.transformers_utils.config`, 0.29 to 0.32).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..targets.target import Target


def one_word(method: str, tokens: int, parallel: bool, target: Target) -> dict[str, Any]:
    """The keys for a head of `method` that drafts `tokens`; `parallel`: all of them in one pass."""
    kind = "peagle" if parallel else method
    return {
        "speculators_model_type": kind,
        "transformer_layer_config": {},  # asked for, and not read beside a model_type
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
            "verifier": {"name_or_path": findable(target.name), "architectures": [target.config.architecture]},
        },
    }


def findable(name: str) -> str:
    """A target's name wherever the server starts: its hub id, or its folder's full path."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    repository = folder.absolute().parent.parent
    if folder.absolute().parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository.name.removeprefix("models--").replace("--", "/", 1)
    return str(folder.resolve())
