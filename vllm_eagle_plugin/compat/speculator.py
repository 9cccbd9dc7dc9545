"""The speculator that Model Runner V2 chooses: ours where the draft model is one of our heads."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from .hooks import MARK
from .problems import unsuited
from .symbols import CHAINS_V2, TREES_V2, Symbol, missing, parameters_in
from .versions import dotted, older

#: Model Runner V2 of older versions is built differently.
V2_SINCE = (0, 32)


def hook_init_speculator(module: ModuleType) -> None:
    """Wrap `init_speculator` in `module`: where it is defined, and where the runner has imported the name."""
    original = module.init_speculator
    if getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def init_speculator(vllm_config: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        from ..preflight import draft_config, is_ours
        from ..tree import asks_for_trees

        if not is_ours(draft_config(vllm_config)):
            return original(vllm_config, device, *args, **kwargs)
        require_v2(asks_for_trees(vllm_config))
        if asks_for_trees(vllm_config):
            from ..tree.draft_v2 import make_tree_speculator

            return make_tree_speculator(vllm_config, device)
        from ..serving.speculator_v2 import make_speculator

        return make_speculator(vllm_config, device)

    setattr(init_speculator, MARK, True)
    module.init_speculator = init_speculator  # type: ignore[attr-defined]


def require_v2_version() -> None:
    """Raise `HeadError` where Model Runner V2 is known to be another."""
    if older(V2_SINCE):
        raise unsuited(
            f"its Model Runner V2 is older than that of {dotted(V2_SINCE)}, the first that heads are served on; "
            "VLLM_USE_V2_MODEL_RUNNER=0 chooses V1"
        )


def require_v2(trees: bool = False) -> None:
    """Raise `HeadError` unless this vLLM's Model Runner V2 has what our speculators need, of trees or of chains."""
    require_v2_version()
    if problems := missing((*CHAINS_V2, *(TREES_V2 if trees else ())), _parameters):
        raise unsuited("; ".join(problems))


def _parameters(symbol: Symbol) -> list[str] | None:
    try:
        return parameters_in(importlib.import_module(symbol.module), symbol)
    except ImportError:
        return None
