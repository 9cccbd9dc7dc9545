"""The trees that a pass begins with: what lets one call of FlashAttention attend to the keys in front of all of them.

vLLM's Model Runner V2 sorts requests that verify drafts to the front. What a CUDA graph reads of this stays where it
was made here. Free of any backend but for FlashAttention 3's schedule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import Tail

#: Where `lead` leaves what it says on a metadata object.
ATTRIBUTE = "eagle_lead"


class Lead(NamedTuple):
    """The pass's first requests, which all have rows of the tail and no others."""

    #: [requests + 1] int32 where each one's rows begin; [requests] int32 keys in front of its tail.
    starts: Tensor
    contexts: Tensor
    #: Rows of all these requests, and most of one; most keys in front of a tail.
    rows: int
    widest: int
    longest: int
    #: There are no other rows: the backend's own call can be left out.
    alone: bool
    #: FlashAttention 3's schedule of the call over the contexts; None: it makes its own.
    schedule: Tensor | None = None
    #: Parts that keys may be split into; 0: as FlashAttention likes.
    splits: int = 0


def lead(metadata: Any, said: Lead | None, blocks: Tensor) -> None:
    """Tell the layers that read this attention metadata of the trees in front, and of the block table [B, M] of their
    KV cache group, which not every backend's metadata hold."""
    setattr(metadata, ATTRIBUTE, (said, blocks))


def led(metadata: Any) -> tuple[Lead | None, Tensor | None]:
    """What was told."""
    return getattr(metadata, ATTRIBUTE, (None, None))


class Graphed:
    """Leads of CUDA graphs of one KV cache group, each of whose requests has equally many rows."""

    def __init__(self, layer: Any, vllm_config: Any, block_size: int, device: torch.device) -> None:
        """layer: one of the group's."""
        self._impl, self._block_size, self._dtype = layer.impl, block_size, vllm_config.model_config.dtype
        requests = max(
            vllm_config.scheduler_config.max_num_seqs, vllm_config.compilation_config.max_cudagraph_capture_size or 0
        )
        self.longest = vllm_config.model_config.max_model_len
        self.contexts = torch.zeros(requests, dtype=torch.int32, device=device)
        #: As many numbers as vLLM's own metadata builder has for as many requests.
        self.schedule: Tensor | None = None
        self.splits = 0
        if getattr(layer.impl, "vllm_flash_attn_version", None) == 3:
            self.schedule = torch.zeros(1 + (requests + 3) // 4 * 16, dtype=torch.int32, device=device)
            self.splits = vllm_config.attention_config.flash_attn_max_num_splits_for_cuda_graph

    def __call__(self, tail: Tail, starts: Tensor) -> Lead:
        """The lead of a pass with nothing but this tail's rows, [B, R]. starts: [B + 1] int32, kept."""
        requests, width = tail.seen.shape
        contexts = self.contexts[:requests]
        contexts.copy_(tail.context)
        return Lead(
            starts, contexts, requests * width, width, self.longest, True, self._schedule(starts, width), self.splits
        )

    def _schedule(self, starts: Tensor, width: int) -> Tensor | None:
        if self.schedule is None:
            return None
        from vllm.v1.attention.backends.fa_utils import get_scheduler_metadata

        requests, impl = len(starts) - 1, self._impl
        found = get_scheduler_metadata(
            batch_size=requests,
            max_seqlen_q=width,
            max_seqlen_k=self.longest,
            num_heads_q=impl.num_heads,
            num_heads_kv=impl.num_kv_heads,
            headdim=impl.head_size,
            cache_seqlens=self.contexts[:requests],
            qkv_dtype=self._dtype,
            cu_seqlens_q=starts,
            page_size=self._block_size,
            causal=False,
            num_splits=self.splits,
        )
        # What stands behind it must say nothing: blocks of threads would take it for work.
        self.schedule.zero_()
        self.schedule[: len(found)] = found
        return self.schedule[: len(found)]
