"""What every draft model of ours shows to vLLM: embedding, logits, strict loading.

The interface is the one vLLM's `EagleProposer` (V1 runner) and `EagleSpeculator` (V2 runner) expect:
`forward(input_ids, positions, hidden_states, inputs_embeds)` to (hidden for logits, hidden fed back),
`compute_logits`, `.model`, `.lm_head`, `has_own_embed_tokens`, `has_own_lm_head`, `load_weights`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import maybe_prefix

from ...compat.problems import require
from ...configs import HeadConfig
from ...errors import HeadError
from ...preflight import compare_tensors
from ...reference import expected_tensors

#: Our checkpoints' separate projections and the fused parameters vLLM's layers hold them in.
STACKED: dict[str, tuple[str, str | int]] = {
    ".q_proj.": (".qkv_proj.", "q"),
    ".k_proj.": (".qkv_proj.", "k"),
    ".v_proj.": (".qkv_proj.", "v"),
    ".gate_proj.": (".gate_up_proj.", 0),
    ".up_proj.": (".gate_up_proj.", 1),
}


class DraftHead(nn.Module):
    """Common part of our draft models. Subclasses build `self.model` and define `forward`.

    Mixed into vLLM's classes where the runner insists on one of them; it never runs their constructors.
    """

    model: nn.Module
    lm_head: nn.Module
    target_ids: Tensor | None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        require()
        speculative = vllm_config.speculative_config
        if speculative is None:
            raise HeadError(
                f"{type(self).__name__} is a draft head",
                "It cannot be served as a model of its own",
                "Pass it in --speculative-config next to its target",
            )
        self.config = speculative.draft_model_config.hf_config
        head = getattr(self.config, "model", None)  # vLLM wraps the head's config in its EAGLEConfig
        self.head_config: HeadConfig = head if isinstance(head, HeadConfig) else self.config
        self.head_config.validate_head()
        self.has_own_embed_tokens = self.head_config.own_embedding or not self.head_config.reads_embedding
        self.has_own_lm_head = self.head_config.own_lm_head
        self.model = self.build(self.head_config, vllm_config, maybe_prefix(prefix, "model"))
        if self.head_config.own_lm_head:
            self.lm_head = ParallelLMHead(
                self.head_config.draft_vocab,
                self.head_config.lm_head_width,
                bias=self.head_config.lm_head_bias,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
        self.logits_processor = LogitsProcessor(
            self.head_config.draft_vocab,
            scale=self.head_config.logit_scale,
            soft_cap=self.head_config.logit_softcap,
        )
        # Target id of each draft id; None where the head drafts from the whole vocabulary.
        self.register_buffer(
            "target_ids",
            torch.zeros(self.head_config.draft_vocab, dtype=torch.long) if self.head_config.reduced_vocab else None,
            persistent=False,
        )

    def build(self, head: HeadConfig, vllm_config: VllmConfig, prefix: str) -> nn.Module:
        """The module that holds everything but the lm_head."""
        raise NotImplementedError

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [T] to embeddings [T, E]."""
        return self.model.embed_input_ids(input_ids)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[T, D] to logits [T, V] over the target's vocabulary; -inf for tokens the head cannot draft."""
        logits = self.draft_logits(hidden_states)
        if logits is None or self.target_ids is None:
            return logits
        full = logits.new_full((*logits.shape[:-1], self.head_config.vocab_size), float("-inf"))
        full[..., self.target_ids] = logits
        return full

    def draft_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[T, D] to logits [T, Vd] over what the head can draft: the target's `target_ids`, where it has those."""
        return self.logits_processor(self.lm_head, hidden_states, self._lm_head_bias())

    def get_top_tokens(self, hidden_states: Tensor) -> Tensor:
        """The target id [T] of the largest logit, without the scatter to V."""
        top = self.logits_processor.get_top_tokens(self.lm_head, hidden_states, self._lm_head_bias())
        return top if self.target_ids is None else self.target_ids[top]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint of exactly the tensors that the config calls for.

        Returns the parameter names that were loaded, which turns on vLLM's own check for missing ones.

        Raises:
            HeadError: a tensor is missing, unexpected, misshapen, stored twice, or not finite.
        """
        parameters = dict(self.named_parameters())
        expected = expected_tensors(self.head_config)
        found: dict[str, tuple[int, ...]] = {}
        loaded: set[str] = set()
        for name, tensor in weights:
            if name in found:
                raise HeadError(f"tensor {name} of the draft head is stored twice", "Once was expected")
            found[name] = tuple(tensor.shape)
            if expected.get(name) != found[name]:
                continue  # reported below, with everything else that is wrong
            if name == "d2t":
                self._load_d2t(tensor)
                continue
            if not tensor.isfinite().all():
                raise HeadError(
                    f"tensor {name} of the draft head holds NaN or infinite values",
                    "Trained weights are finite",
                    "Export the head again from an earlier checkpoint",
                )
            loaded.add(self._load(parameters, name, tensor))
        compare_tensors(expected, found)
        return loaded

    def _load(self, parameters: dict[str, nn.Parameter], name: str, tensor: Tensor) -> str:
        target = name if name.startswith("lm_head.") else f"model.{name}"
        for part, (fused, shard) in STACKED.items():
            if part in target:
                target = target.replace(part, fused)
                parameters[target].weight_loader(parameters[target], tensor, shard)
                return target
        parameter = parameters[target]
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
        return target

    def _load_d2t(self, d2t: Tensor) -> None:
        assert self.target_ids is not None  # expected_tensors() lists d2t only for a reduced vocabulary
        self.target_ids.copy_(draft_target_ids(d2t, self.head_config.vocab_size))

    def _lm_head_bias(self) -> Tensor | None:
        return getattr(self.lm_head, "bias", None)


def draft_target_ids(d2t: Tensor, vocab_size: int) -> Tensor:
    """Absolute target ids [Vd] from the offsets `d2t`.

    Raises:
        HeadError: not integers, ids outside the vocabulary, or two draft tokens for one target token.
    """
    if d2t.is_floating_point() or d2t.is_complex() or d2t.dtype is torch.bool:
        raise HeadError(f"d2t is of type {d2t.dtype}", "Integers were expected")
    ids = torch.arange(d2t.numel()) + d2t.long().cpu()
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise HeadError(
            f"d2t maps draft tokens to ids {int(ids.min())} to {int(ids.max())}, the target has 0 to {vocab_size - 1}",
            "d2t holds offsets: draft token i is target token i + d2t[i]",
            "If it holds absolute ids, convert the head with `vllm-eagle convert`",
        )
    if ids.unique().numel() != ids.numel():
        raise HeadError(
            "d2t maps two draft tokens to the same target token",
            "Each must have its own",
            "Is d2t all zeros, or absolute ids taken for offsets?",
        )
    return ids


class EmbeddingBody(nn.Module):
    """A module with `embed_tokens`: the head's own table, or the target's, lent after loading."""

    embed_tokens: nn.Module

    def __init__(self, head: HeadConfig, prefix: str) -> None:
        super().__init__()
        self.embed_scale = head.embed_scale
        if head.own_embedding:
            self.embed_tokens = VocabParallelEmbedding(
                head.vocab_size, head.embed_width, prefix=maybe_prefix(prefix, "embed_tokens")
            )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embeds = self.embed_tokens(input_ids)
        return embeds if self.embed_scale == 1.0 else embeds * self.embed_scale
