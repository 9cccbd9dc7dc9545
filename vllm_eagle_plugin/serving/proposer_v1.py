"""Chain proposers for our heads in vLLM's V1 runner.

`HeadProposer` lends a head the weights of any target and checks that it is the right one.
`AttentionFreeProposer` drafts without a KV cache, on one row per request.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.v1.spec_decode.eagle import EagleProposer

from ..compat.running import sampled_rows
from ..configs import AttentionFreeConfig
from ..preflight import draft_config, is_ours
from ..record import Proposal, observers, record_to_file
from .target_weights import check_target, language_model, share_embedding, share_lm_head


def proposer_class(vllm_config: Any) -> type[EagleProposer] | None:
    """The proposer for the head in `vllm_config`, or None if it is none of ours."""
    config = draft_config(vllm_config)
    attention_free = isinstance(getattr(config, "model", None), AttentionFreeConfig)
    if attention_free:
        return AttentionFreeProposer
    return HeadProposer if is_ours(config) else None


class HeadProposer(EagleProposer):
    """vLLM's chain proposer, for a target of any family.

    Stock code looks for `target.model.embed_tokens` and `target.lm_head` by name, so that GPT-2
    (`.transformer.wte`) or Gemma-2 (no lm_head, its embedding serves) fail; here modules are found by
    what they are.
    """

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any = None) -> None:
        super().__init__(vllm_config, device, runner)
        self._runner = runner
        record_to_file()

    def load_model(self, target_model: nn.Module) -> None:
        super().load_model(target_model)
        check_target(self.vllm_config, language_model(target_model))

    def propose(self, num_speculative_tokens: int, *args: Any, **kwargs: Any) -> Tensor | list[list[int]]:
        if not observers:
            return self.draft(num_speculative_tokens, *args, **kwargs)
        # Read now what drafting overwrites.
        rows = sampled_rows(kwargs["token_indices_to_sample"], kwargs["common_attn_metadata"])
        positions, sampled = kwargs["target_positions"][rows].tolist(), kwargs["next_token_ids"].tolist()
        drafts = self.draft(num_speculative_tokens, *args, **kwargs)
        requests = self._runner.input_batch.req_ids
        drafted = drafts if isinstance(drafts, list) else drafts.tolist()
        proposals = [Proposal(*row) for row in zip(requests, positions, sampled, drafted, strict=True)]
        for observer in observers:
            observer(proposals)
        return drafts

    def draft(self, num_speculative_tokens: int, *args: Any, **kwargs: Any) -> Tensor:
        """[B, k] drafted tokens; `SpecDecodeBaseProposer.propose`'s contract."""
        return super().propose(num_speculative_tokens, *args, **kwargs)

    def _maybe_share_embeddings(self, target_language_model: nn.Module) -> None:
        share_embedding(self.model, target_language_model, self.hidden_size)

    def _maybe_share_lm_head(self, target_language_model: nn.Module) -> None:
        share_lm_head(self.model, target_language_model)


class AttentionFreeProposer(HeadProposer):
    """Drafts with a head that has no attention: no KV, no metadata, one row per request.

    The prompt needs no work at all: a chain depends only on the last verified position.
    """

    def validate_same_kv_cache_group(self, kv_cache_config: Any) -> None:
        """Nothing to validate: there are no draft layers in the KV cache."""

    def initialize_attn_backend(self, kv_cache_config: Any, kernel_block_sizes: list[int] | None = None) -> None:
        self.draft_attn_groups: list[Any] = []
        # The runner hands `propose` the metadata of this group; we read only the request boundaries.
        self.kv_cache_gid = 0
        self.block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size

    def initialize_cudagraph_keys(self, cudagraph_mode: Any) -> None:
        """The head runs eagerly: a few small matmuls."""

    def draft(
        self,
        num_speculative_tokens: int,
        target_token_ids: Tensor,
        target_positions: Tensor,
        target_hidden_states: Tensor,
        next_token_ids: Tensor,
        token_indices_to_sample: Tensor | None,
        common_attn_metadata: Any,
        sampling_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        self._last_draft_probs = None
        last = sampled_rows(token_indices_to_sample, common_attn_metadata)
        hidden = target_hidden_states[last]
        if num_speculative_tokens == 0:
            return next_token_ids.new_empty((last.shape[0], 0), dtype=torch.int64)
        previous, token = target_token_ids[last], next_token_ids
        drafts, probs = [], []
        for _ in range(num_speculative_tokens):
            features, hidden = self.model(previous if self._lagging else token, None, hidden)
            previous = token
            token, p = self._draft(features, sampling_metadata)
            drafts.append(token)
            probs.append(p)
        if probs[0] is not None:
            self._last_draft_probs = torch.stack(probs, 1)
        return torch.stack(drafts, 1)

    def _draft(self, features: Tensor, sampling_metadata: Any) -> tuple[Tensor, Tensor | None]:
        """One token per request, and the distribution [B, V] it was drawn from if it was drawn."""
        if not self._enable_probabilistic_draft_probs or sampling_metadata.all_greedy:
            return self.model.get_top_tokens(features), None
        return self._sample_from_logits(self.model.compute_logits(features), sampling_metadata)

    @torch.inference_mode()
    def dummy_run(self, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Memory profiling: the head sees at most one row per request."""
        rows = min(num_tokens, self.max_batch_size)
        self.model(self.input_ids[:rows], None, self.hidden_states[:rows])

    @property
    def _lagging(self) -> bool:
        return self.model.head_config.token_pairing == "same"
