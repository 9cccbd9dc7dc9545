"""EAGLE-1/2: embedding and target feature through one linear layer into decoder layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configs import EagleConfig
from .base import ReferenceHead
from .layers import DecoderLayer
from .memory import ChainMemory
from .rope import Rope


class EagleHead(ReferenceHead):
    """See `EagleConfig`; `hidden` is the target's output behind its final norm."""

    config: EagleConfig

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(config)
        width, eps = config.hidden_size, config.rms_norm_eps
        if config.embed_norm:
            self.embed_norm = nn.RMSNorm(width, eps=eps)
        if config.hidden_norm:
            self.hidden_norm = nn.RMSNorm(width, eps=eps)
        self.fc = nn.Linear(2 * width, width, bias=config.fc_bias)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, input_norm=i > 0 or config.input_norm) for i in range(config.num_hidden_layers)
        )
        if config.output_norm:
            self.norm = nn.RMSNorm(width, eps=eps)
        self.rope = Rope(config)

    def forward(self, tokens: Tensor, hidden: Tensor, memory: ChainMemory) -> tuple[Tensor, Tensor]:
        embed = self.embed(tokens)
        if self.config.embed_norm:
            embed = self.embed_norm(embed)
        if self.config.hidden_norm:
            hidden = self.hidden_norm(hidden)
        x = self.fc(torch.cat((embed, hidden), -1))
        rope = self.rope(x, memory)
        for layer in self.layers:
            x = layer(x, rope, memory)
        out = self.norm(x) if self.config.output_norm else x
        return out, out if self.config.feedback == "post_norm" else x
