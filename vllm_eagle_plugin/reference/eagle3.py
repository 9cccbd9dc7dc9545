"""EAGLE-3: several layers of the target fused, drafted on with a widened first decoder layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configs import Eagle3Config
from .base import ReferenceHead
from .layers import DecoderLayer
from .memory import ChainMemory
from .rope import Rope


class Eagle3Head(ReferenceHead):
    """See `Eagle3Config`; the target hands over its aux hidden states side by side, [B, T, A * Ht]."""

    config: Eagle3Config

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config)
        width, eps = config.hidden_size, config.rms_norm_eps
        if config.use_aux_hidden_state:
            target_width, count = config.target_width, config.num_aux_hidden_states
            if config.norm_before_fc:
                self.input_norm = nn.RMSNorm(count * target_width, eps=eps)
            if config.fc_norm:
                self.fc_norm = nn.ModuleList(nn.RMSNorm(target_width, eps=eps) for _ in range(count))
            self.fc = nn.Linear(count * target_width, width, bias=config.fc_bias)
            if config.parallel_drafting:
                self.mask_hidden = nn.Parameter(torch.zeros(1, 1, count * target_width))
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, input_norm=i > 0 or config.input_norm, input_width=2 * width if i == 0 else None)
            for i in range(config.num_hidden_layers)
        )
        if config.hidden_norm:
            self.layers[0].hidden_norm = nn.RMSNorm(width, eps=eps)
        if config.output_norm:
            self.norm = nn.RMSNorm(width, eps=eps)
        self.rope = Rope(config)

    def fuse(self, hidden: Tensor) -> Tensor:
        if not self.config.use_aux_hidden_state:
            return hidden
        if self.config.norm_before_fc:
            hidden = self.input_norm(hidden)
        if self.config.fc_norm:
            chunks = hidden.chunk(self.config.num_aux_hidden_states, -1)
            hidden = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], -1)
        return self.fc(hidden)

    def next_inputs(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.parallel_drafting:
            return tokens, state
        assert self.config.mask_token_id is not None
        return torch.full_like(tokens, self.config.mask_token_id), self.fuse(self.mask_hidden).expand_as(state)

    def forward(self, tokens: Tensor, hidden: Tensor, memory: ChainMemory) -> tuple[Tensor, Tensor]:
        first, *others = self.layers
        embed = self.embed(tokens)
        if self.config.input_norm:
            embed = first.input_layernorm(embed)
        normed = first.hidden_norm(hidden) if self.config.hidden_norm else hidden
        residual = normed if self.config.norm_before_residual else hidden
        rope = self.rope(embed, memory)
        x = first.attend(residual, torch.cat((embed, normed), -1), rope, memory)
        for layer in others:
            x = layer(x, rope, memory)
        out = self.norm(x) if self.config.output_norm else x
        return out, out if self.config.feedback == "post_norm" else x
