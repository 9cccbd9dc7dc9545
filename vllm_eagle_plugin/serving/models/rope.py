"""RoPE of our draft models: the reference's own angles in vLLM's rotary layer.

vLLM's `get_rope` builds tables that end where some kinds were trained to (YaRN: factor times the original context),
and leaves out parameters that transformers reads. Only multimodal RoPE, with three positions a token, is its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from ...configs import TransformerHeadConfig
from ...reference.rope import rope_angles


class HeadRope(RotaryEmbedding):
    """Rotates the first values of q and k by the angles of a head, at positions below `positions`."""

    def __init__(self, head: TransformerHeadConfig, positions: int) -> None:
        frequencies, factor = rope_angles(head)
        self._angles = (frequencies, factor)
        width = head.head_dim or head.hidden_size // head.num_attention_heads
        super().__init__(width, 2 * len(frequencies), positions, 1.0, True, torch.get_default_dtype())

    def _compute_cos_sin_cache(self) -> Tensor:
        frequencies, factor = self._angles
        angles = torch.arange(self.max_position_embeddings, dtype=torch.float)[:, None] * frequencies
        return torch.cat((angles.cos(), angles.sin()), -1) * factor


def head_rope(head: TransformerHeadConfig, positions: int) -> nn.Module:
    """The rotary layer of `head`, for positions below `positions`."""
    if "mrope_section" in (head.rope_parameters or {}):
        return get_rope(head.head_dim, max_position=positions, rope_parameters=head.rope_parameters)
    return HeadRope(head, positions)
