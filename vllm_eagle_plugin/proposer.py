"""Chain proposers for our heads in vLLM's V1 runner.

`HeadProposer` lends a head the weights of any target and checks that it is the right one.
`AttentionFreeProposer` drafts without a KV cache, on one row per request.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.v1.spec_decode.eagle import EagleProposer

from .configs import AttentionFreeConfig, HeadConfig
from .errors import HeadError
from .fingerprint import check_embedding
from .record import Proposal, observers, record_to_file
from .tree import asks_for_trees


def proposer_class(vllm_config: Any) -> type[EagleProposer] | None:
    """The proposer for the head in `vllm_config`, or None if it is none of ours."""
    config = _draft_config(vllm_config)
    attention_free = isinstance(getattr(config, "model", None), AttentionFreeConfig)
    if asks_for_trees(vllm_config):
        from .tree.draft import TreeAttentionFreeProposer, TreeHeadProposer

        return TreeAttentionFreeProposer if attention_free else TreeHeadProposer
    if attention_free:
        return AttentionFreeProposer
    if isinstance(getattr(config, "model", None), HeadConfig) or "target" in _provenance(config):
        return HeadProposer
    return None


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
        self._check_target(_language_model(target_model))

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
        if getattr(self.model, "has_own_embed_tokens", False):
            return
        if get_pp_group().world_size > 1:
            raise HeadError(
                "pipeline parallelism with a head that uses the target's embedding",
                "The embedding lives on the first stage, the head on the last",
                "Convert the head with its own embedding, or use tensor parallelism",
            )
        self.model.model.embed_tokens = find_embedding(target_language_model, self.hidden_size)

    def _maybe_share_lm_head(self, target_language_model: nn.Module) -> None:
        if not getattr(self.model, "has_own_lm_head", False):
            self.model.lm_head = find_lm_head(target_language_model)

    def _check_target(self, target: nn.Module) -> None:
        fingerprint = _provenance(_draft_config(self.vllm_config)).get("target")
        if not fingerprint or get_pp_group().world_size > 1:
            return
        embedding = find_embedding(target, fingerprint["hidden_size"])
        weight = getattr(embedding, "weight", None)
        if isinstance(weight, Tensor):
            shard = embedding.shard_indices
            rows = shard.org_vocab_end_index - shard.org_vocab_start_index
            check_embedding(
                fingerprint, weight[:rows], shard.org_vocab_start_index, self.vllm_config.model_config.model
            )


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


def sampled_rows(token_indices_to_sample: Tensor | None, common_attn_metadata: Any) -> Tensor:
    """Rows [B] of each request's last verified position among the tokens of a step."""
    if token_indices_to_sample is None:
        return common_attn_metadata.query_start_loc[1:] - 1
    return token_indices_to_sample


def find_embedding(model: nn.Module, width: int) -> nn.Module:
    """The input embedding table of a vLLM target: its one vocabulary embedding of this width."""
    tables = {
        id(m): (name, m)
        for name, m in model.named_modules()
        if isinstance(m, VocabParallelEmbedding) and not isinstance(m, ParallelLMHead) and m.embedding_dim == width
    }
    if len(tables) != 1:
        names = [name for name, _ in tables.values()]
        raise HeadError(
            f"the target {type(model).__name__} has {len(tables)} embedding tables of width {width}: {names}",
            "One was expected, for the head to use",
            "Convert the head with its own embedding",
        )
    ((_, table),) = tables.values()
    return table


def find_lm_head(model: nn.Module) -> nn.Module:
    """The output projection of a vLLM target; its embedding where the two are tied without a name."""
    if isinstance(getattr(model, "lm_head", None), nn.Module):
        return model.lm_head
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            return module
    return find_embedding(model, model.config.get_text_config().hidden_size)


def _language_model(model: nn.Module) -> nn.Module:
    get = getattr(model, "get_language_model", None)
    return get() if callable(get) else model


def _draft_config(vllm_config: Any) -> Any:
    speculative = getattr(vllm_config, "speculative_config", None)
    return getattr(getattr(speculative, "draft_model_config", None), "hf_config", None)


def _provenance(config: Any) -> dict[str, Any]:
    return getattr(config, "eagle_provenance", None) or {}
