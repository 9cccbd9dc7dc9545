"""Heads without attention: each position is on its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configs import AttentionFreeConfig
from .base import ReferenceHead
from .memory import ChainMemory

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


class AttentionFreeBody(nn.Module):
    """`[embed, hidden]` to the predicted feature; the same module serves in vLLM."""

    def __init__(self, config: AttentionFreeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.input_projection is not None:
            self.input_projection = nn.Linear(config.input_width, width, bias=config.input_bias)
        if config.input_activation is not None:
            self.input_act = ACTIVATION_MODULES[config.input_activation]()
        blocks: list[nn.Module] = []
        for _ in range(config.num_blocks):
            blocks.append(nn.Linear(width, width))
            blocks.append(ACTIVATION_MODULES[config.block_activation]())
            blocks.append(nn.LayerNorm(width, eps=config.layer_norm_eps))
        if blocks:
            self.blocks = nn.Sequential(*blocks)
        if config.output_projection:
            self.output_projection = nn.Linear(width, config.hidden_size, bias=config.output_bias)

    def forward(self, embed: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """embed [.., E] (None if unused), hidden [.., H]; what the lm_head reads and what is fed back."""
        config = self.config
        x = hidden
        if embed is not None:
            x = torch.cat((embed, hidden), -1) if config.use_hidden else embed
        if config.input_projection is not None:
            x = self.input_projection(x)
        if config.input_activation is not None:
            x = self.input_act(x)
        if config.num_blocks:
            x = x + self.blocks(x) if config.block_residual else self.blocks(x)
        if config.output_projection:
            x = self.output_projection(x)
        # A head that ignores the hidden state, or whose output has another width, has nothing to feed back.
        return x, x if x.shape[-1] == hidden.shape[-1] else hidden


class AttentionFreeHead(ReferenceHead):
    """See `AttentionFreeConfig`."""

    config: AttentionFreeConfig

    def __init__(self, config: AttentionFreeConfig) -> None:
        super().__init__(config)
        self.body = AttentionFreeBody(config)

    def forward(self, tokens: Tensor, hidden: Tensor, memory: ChainMemory) -> tuple[Tensor, Tensor]:
        embed = self.embed(tokens) if self.config.use_embedding else None
        out, feedback = self.body(embed, hidden)
        return out, feedback
