"""EAGLE-3 heads in every variant, as a vLLM draft model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

from ...configs import Eagle3Config, HeadConfig
from .base import DraftHead, EmbeddingBody
from .layers import DYNAMIC_ARG_DIMS, DraftDecoderLayer, layer_prefix


@support_torch_compile(dynamic_arg_dims=DYNAMIC_ARG_DIMS)
class Eagle3Model(EmbeddingBody):
    """Agrees with `reference.Eagle3Head`; flattened to tokens [T]."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", head: Eagle3Config) -> None:
        super().__init__(head, prefix)
        width, eps = head.hidden_size, head.rms_norm_eps
        self.use_aux_hidden_state = head.use_aux_hidden_state  # read by vLLM's runner
        self.num_aux = head.num_aux_hidden_states
        if head.use_aux_hidden_state:
            fused = head.num_aux_hidden_states * head.target_width
            if head.norm_before_fc:
                self.input_norm = RMSNorm(fused, eps=eps)
            if head.fc_norm:
                self.fc_norm = nn.ModuleList(RMSNorm(head.target_width, eps=eps) for _ in range(self.num_aux))
            self.fc = ReplicatedLinear(fused, width, bias=head.fc_bias, return_bias=False, prefix=f"{prefix}.fc")
        self.layers = nn.ModuleList(
            DraftDecoderLayer(
                head,
                vllm_config,
                layer_prefix(vllm_config, prefix, i),
                input_norm=i > 0 or head.input_norm,
                input_width=2 * width if i == 0 else None,
            )
            for i in range(head.num_hidden_layers)
        )
        if head.hidden_norm:
            self.layers[0].hidden_norm = RMSNorm(width, eps=eps)
        self.norm = RMSNorm(width, eps=eps) if head.output_norm else None
        self.input_normed = head.input_norm
        self.hidden_normed = head.hidden_norm
        self.residual_normed = head.norm_before_residual
        self.feed_normed = head.feedback == "post_norm"

    def fuse(self, aux: Tensor) -> Tensor:
        """Aux hidden states side by side [T, A * Ht] to the head's state [T, D]."""
        if not self.use_aux_hidden_state:
            return aux
        if hasattr(self, "input_norm"):
            aux = self.input_norm(aux)
        if hasattr(self, "fc_norm"):
            chunks = aux.chunk(self.num_aux, -1)
            aux = torch.cat([norm(chunk.contiguous()) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], -1)
        return self.fc(aux)

    def forward(self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        first = self.layers[0]
        embed = self.embed_input_ids(input_ids)
        if self.input_normed:
            embed = first.input_layernorm(embed)
        normed = first.hidden_norm(hidden_states) if self.hidden_normed else hidden_states
        residual = normed if self.residual_normed else hidden_states
        x = first.attend(positions, residual, torch.cat((embed, normed), -1))
        for layer in self.layers[1:]:
            x = layer(positions, x)
        out = x if self.norm is None else self.norm(x)
        return out, out if self.feed_normed else x


class Eagle3TransformerForCausalLM(DraftHead, Eagle3LlamaForCausalLM):
    """See `configs.Eagle3Config`. The V1 runner accepts only subclasses of vLLM's own EAGLE-3 classes."""

    def build(self, head: HeadConfig, vllm_config: VllmConfig, prefix: str) -> nn.Module:
        return Eagle3Model(vllm_config=vllm_config, prefix=prefix, head=head)

    def combine_hidden_states(self, hidden_states: Tensor) -> Tensor:
        return self.model.fuse(hidden_states)

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model(input_ids, positions, hidden_states)
