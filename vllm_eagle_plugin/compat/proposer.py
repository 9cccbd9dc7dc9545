"""The proposer that vLLM builds by name: ours takes its place where the draft model is one of our heads."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from ..errors import HeadError
from .hooks import MARK

#: `SpecDecodeBaseProposer.propose` must take these keywords for our chain proposer to stand in for it.
PROPOSE_KEYWORDS = {
    "num_speculative_tokens",
    "target_token_ids",
    "target_positions",
    "target_hidden_states",
    "next_token_ids",
    "token_indices_to_sample",
    "common_attn_metadata",
    "sampling_metadata",
}
PROPOSER_METHODS = (
    "load_model",
    "propose",
    "dummy_run",
    "initialize_attn_backend",
    "validate_same_kv_cache_group",
    "initialize_cudagraph_keys",
    "_maybe_share_embeddings",
    "_maybe_share_lm_head",
    "_sample_from_logits",
)


def hook_eagle_proposer(module: ModuleType) -> None:
    """`EagleProposer(...)` yields our subclass when the draft model is one of our heads.

    The runner builds the class by name and checks instances of it; both keep working.
    """
    proposer = module.EagleProposer
    if getattr(proposer, MARK, False):
        return
    _check_proposer(proposer)
    original_new = proposer.__new__

    def __new__(cls: type, vllm_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        if cls is proposer:
            from ..serving.proposer_v1 import proposer_class

            cls = proposer_class(vllm_config) or cls
        return original_new(cls) if original_new is object.__new__ else original_new(cls, vllm_config, *args, **kwargs)

    proposer.__new__ = __new__
    setattr(proposer, MARK, True)


def _check_proposer(proposer: type) -> None:
    missing = [name for name in PROPOSER_METHODS if not callable(getattr(proposer, name, None))]
    if missing:
        raise HeadError(f"vllm.v1.spec_decode.eagle.EagleProposer has no {', '.join(missing)}")
    parameters = list(inspect.signature(proposer.__init__).parameters)[:4]  # type: ignore[misc]
    if parameters != ["self", "vllm_config", "device", "runner"]:
        raise HeadError(f"EagleProposer.__init__ takes {parameters}")
    lacking = PROPOSE_KEYWORDS - set(inspect.signature(proposer.propose).parameters)  # type: ignore[attr-defined]
    if lacking:
        raise HeadError(f"EagleProposer.propose does not take {', '.join(sorted(lacking))}")
