"""Attention-free heads as a vLLM draft model: no KV cache, no attention metadata."""

from __future__ import annotations

from torch import Tensor, nn
from vllm.config import VllmConfig

from ...configs import AttentionFreeConfig, HeadConfig
from ...reference.attention_free import AttentionFreeBody
from .base import DraftHead, EmbeddingBody


class AttentionFreeModel(EmbeddingBody):
    """The reference's own arithmetic behind vLLM's embedding; replicated under tensor parallelism."""

    def __init__(self, head: AttentionFreeConfig, prefix: str) -> None:
        super().__init__(head, prefix)
        self.use_embedding = head.use_embedding
        self.body = AttentionFreeBody(head)

    def forward(self, input_ids: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        embed = self.embed_input_ids(input_ids) if self.use_embedding else None
        return self.body(embed, hidden_states)


class EagleAttentionFreeForCausalLM(DraftHead):
    """See `configs.AttentionFreeConfig`; agrees with `reference.AttentionFreeHead`."""

    def build(self, head: HeadConfig, vllm_config: VllmConfig, prefix: str) -> nn.Module:
        assert isinstance(head, AttentionFreeConfig)
        return AttentionFreeModel(head, prefix)

    def forward(
        self, input_ids: Tensor, positions: Tensor, hidden_states: Tensor, inputs_embeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model(input_ids, hidden_states)
