"""EAGLE-1/2 heads with everything trainers add, as a vLLM draft model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear

from ...configs import EagleConfig, HeadConfig
from .base import DraftHead, EmbeddingBody
from .layers import DYNAMIC_ARG_DIMS, DraftDecoderLayer, layer_prefix


@support_torch_compile(dynamic_arg_dims=DYNAMIC_ARG_DIMS)
class EagleModel(EmbeddingBody):
    """Agrees with `reference.EagleHead`; flattened to tokens [T]."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", head: EagleConfig) -> None:
        super().__init__(head, prefix)
        width, eps = head.hidden_size, head.rms_norm_eps
        self.embed_norm = RMSNorm(width, eps=eps) if head.embed_norm else None
        self.hidden_norm = RMSNorm(width, eps=eps) if head.hidden_norm else None
        self.fc = ReplicatedLinear(2 * width, width, bias=head.fc_bias, return_bias=False, prefix=f"{prefix}.fc")
        self.layers = nn.ModuleList(
            DraftDecoderLayer(head, vllm_config, layer_prefix(vllm_config, prefix, i), i > 0 or head.input_norm)
            for i in range(head.num_hidden_layers)
        )
        self.norm = RMSNorm(width, eps=eps) if head.output_norm else None
        self.feed_normed = head.feedback == "post_norm"

    def forward(self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        embed = self.embed_input_ids(input_ids)
        if self.embed_norm is not None:
            embed = self.embed_norm(embed)
        if self.hidden_norm is not None:
            hidden_states = self.hidden_norm(hidden_states)
        x = self.fc(torch.cat((embed, hidden_states), -1))
        for layer in self.layers:
            x = layer(positions, x)
        out = x if self.norm is None else self.norm(x)
        return out, out if self.feed_normed else x


class EagleTransformerForCausalLM(DraftHead):
    """See `configs.EagleConfig`."""

    def build(self, head: HeadConfig, vllm_config: VllmConfig, prefix: str) -> nn.Module:
        return EagleModel(vllm_config=vllm_config, prefix=prefix, head=head)

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model(input_ids, positions, hidden_states)
