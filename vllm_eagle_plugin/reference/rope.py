"""Angles of a head's RoPE: the reference and our vLLM models rotate by the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..configs import TransformerHeadConfig
from .memory import ChainMemory


def rope_angles(config: TransformerHeadConfig) -> tuple[Tensor, float]:
    """Inverse frequencies [r / 2] and the factor on cos and sin; the first r values of each attention head rotate.

    As transformers' `ROPE_INIT_FUNCTIONS`, and vLLM's `get_rope`, compute them. LongRoPE is meant within its original
    context, where its short factors hold.
    """
    rope = config.rope_parameters or {"rope_theta": config.default_theta}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        return ROPE_INIT_FUNCTIONS[kind](config)
    width = config.head_dim or config.hidden_size // config.num_attention_heads
    rotated = int(width * rope.get("partial_rotary_factor", 1.0))
    return rope["rope_theta"] ** -(torch.arange(0, rotated, 2, dtype=torch.float) / rotated), 1.0


class Rope(nn.Module):
    """cos and sin for every step of a chain; adds nothing to checkpoints."""

    def __init__(self, config: TransformerHeadConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, memory: ChainMemory) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, 1, r] for this step of `memory`, which then counts one step more."""
        positions = memory.positions + memory.steps
        memory.steps += 1
        frequencies, factor = rope_angles(self.config)
        angles = positions[..., None].float() * frequencies.to(x.device)
        angles = torch.cat((angles, angles), -1).unsqueeze(2)
        return (angles.cos() * factor).to(x.dtype), (angles.sin() * factor).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first values of each attention head, as many as `cos` has, rotated; x [B, T, heads, head_dim]."""
    rotated, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    first, second = rotated.chunk(2, -1)
    return torch.cat((rotated * cos + torch.cat((-second, first), -1) * sin, rest), -1)
