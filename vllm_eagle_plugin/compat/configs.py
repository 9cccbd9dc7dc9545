"""vLLM's configs: heads of ours and draft trees are checked in the front end, before anything is loaded."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from .hooks import MARK, when_imported
from .problems import require
from .speculator import require_v2_version

#: Attribute of a speculative config whose drafts are verified as trees.
_TREES = "_vllm_eagle_plugin_trees"


def hook_speculative_config() -> None:
    """Check a head of ours in the front end, before any process or memory is spent on it."""
    from vllm.config.speculative import SpeculativeConfig

    original = SpeculativeConfig.__post_init__
    if getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from .. import preflight

        head = preflight.find_head(self.model, self.revision)
        if head is not None:
            require()
            preflight.check_request(self, head)
        original(self, *args, **kwargs)
        if head is not None:
            preflight.check_target(self, head)

    setattr(__post_init__, MARK, True)
    SpeculativeConfig.__post_init__ = __post_init__


def hook_vllm_config() -> None:
    """Check what is asked of draft trees in the front end, with all settings at hand."""
    from vllm.config import VllmConfig

    original = VllmConfig.__post_init__
    if getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from .. import preflight
        from ..tree import asks_for_trees

        if asks_for_trees(self):
            from ..tree.check import make_settings

            make_settings(self)
        original(self, *args, **kwargs)

        if preflight.is_ours(preflight.draft_config(self)):
            preflight.check_adapters(self)
            if getattr(self, "use_v2_model_runner", False):
                require_v2_version()
                preflight.check_v2(self)
            else:
                preflight.check_v1(self)

        if asks_for_trees(self):
            from ..tree.check import check_drafting
            from ..tree.relay import open_relay

            require()
            check_drafting(self)
            open_relay()
            setattr(self.speculative_config, _TREES, True)
            when_imported("vllm.sampling_params", _hook_sampling_params)

    setattr(__post_init__, MARK, True)
    VllmConfig.__post_init__ = __post_init__


def _hook_sampling_params(module: ModuleType) -> None:
    """Let min_p and logit_bias through where trees are verified: vLLM's own rejection sampler lacks them, but
    a tree's walk samples each token with the plain sampler, which has them."""
    original = getattr(module.SamplingParams, "_validate_spec_decode", None)
    if original is None or getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def _validate_spec_decode(self: Any, speculative_config: Any, *args: Any, **kwargs: Any) -> None:
        if not getattr(speculative_config, _TREES, False):
            original(self, speculative_config, *args, **kwargs)

    setattr(_validate_spec_decode, MARK, True)
    module.SamplingParams._validate_spec_decode = _validate_spec_decode
