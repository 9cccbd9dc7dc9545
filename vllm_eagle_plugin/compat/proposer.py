"""The proposer that vLLM's V1 runner builds by name: ours takes its place where the draft model is one of our heads."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .. import PROPOSERS
from ..errors import HeadError
from .hooks import MARK, named
from .symbols import CHAINS_V1, missing, parameters_in


def hook_eagle_proposer(module: ModuleType) -> None:
    """`EagleProposer(...)` yields our subclass when the draft model is one of our heads.

    The runner builds the class by name and checks instances of it; both keep working.
    """
    proposer = module.EagleProposer
    if getattr(proposer, MARK, False):
        return
    if problems := missing(CHAINS_V1, lambda symbol: parameters_in(module, symbol)):
        raise HeadError("; ".join(problems))
    original_new = proposer.__new__

    def __new__(cls: type, vllm_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        if cls is proposer:
            cls = next(filter(None, (named(path)(vllm_config) for path in PROPOSERS)), cls)
        return original_new(cls) if original_new is object.__new__ else original_new(cls, vllm_config, *args, **kwargs)

    proposer.__new__ = __new__
    setattr(proposer, MARK, True)
