"""What each head means: plain torch modules that define the arithmetic, without vLLM.

Training optimises these, conversion is checked against them, and every vLLM model of this package
must agree with its reference. Their `state_dict` names are the names in our checkpoints.
"""

from __future__ import annotations

import torch

from ..configs import AttentionFreeConfig, Eagle3Config, EagleConfig, HeadConfig
from ..errors import HeadError
from .attention_free import AttentionFreeHead
from .base import ReferenceHead
from .chain import ChainStep, draft_chain, unroll
from .eagle import EagleHead
from .eagle3 import Eagle3Head

__all__ = [
    "AttentionFreeHead",
    "ChainStep",
    "Eagle3Head",
    "EagleHead",
    "ReferenceHead",
    "build_reference",
    "draft_chain",
    "expected_tensors",
    "unroll",
]

_FAMILIES: dict[type[HeadConfig], type[ReferenceHead]] = {
    AttentionFreeConfig: AttentionFreeHead,
    EagleConfig: EagleHead,
    Eagle3Config: Eagle3Head,
}


def build_reference(config: HeadConfig) -> ReferenceHead:
    """The reference module of `config`, with freshly initialised weights."""
    config.validate_head()
    for family, module in _FAMILIES.items():
        if isinstance(config, family):
            return module(config)
    raise HeadError(f"{type(config).__name__} is not the config of a head this package knows")


def expected_tensors(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of `config` must hold, and no other, with its shape."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in build_reference(config).state_dict().items()}
