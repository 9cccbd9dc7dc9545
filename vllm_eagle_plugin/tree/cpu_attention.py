"""Draft trees on vLLM's CPU attention: the stock kernel over a tree's branches, see `expansion`.

Requests without a tree are computed as ever. In the same batch, requests with one are kept out of the stock
call by making them short there; what it leaves in their rows is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm import envs
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

from .attention import Masked, attached
from .expansion import Call, calls
from .kv_layout import LayoutError, elements, flat, layout_of

#: Below this many rows, the kernel for matrix tiles computes a branch faster as a request for each row.
SINGLY = {"amx": 4}


def unsupported(layer: Any) -> str | None:
    """Why this attention layer cannot carry trees; None if it can."""
    impl = getattr(layer, "impl", None)
    if not isinstance(impl, CPUAttentionBackendImpl):
        return f"its attention is {type(impl).__name__}, not vLLM's CPU attention"
    if impl.attn_type != AttentionType.DECODER:
        return f"it is {impl.attn_type} attention, not a decoder's"
    if torch.is_tensor(layer.kv_cache) and layer.kv_cache.dim() == 4:
        try:
            layout_of(layer)
        except LayoutError as error:
            return str(error)
    return None


def enable(layers: Iterable[Any]) -> None:
    """Make these layers heed `attach`. Only they change: other engines of the process are left alone."""
    for layer in layers:
        if type(layer.impl) is CPUAttentionBackendImpl:
            layer.impl.__class__ = TreeCPUAttentionImpl
        elif not isinstance(layer.impl, TreeCPUAttentionImpl):
            raise TypeError(f"{type(layer.impl).__name__} cannot carry trees: {unsupported(layer)}")


@dataclass(frozen=True)
class Work:
    """What the layers of a KV cache group do in a forward pass; worked out by the first of them."""

    #: Metadata of the requests without trees; None if there are none.
    others: CPUAttentionMetadata | None
    #: Blocks of the cache that trees need, in the numbering of the calls: a copy of them starts the scratch cache.
    blocks: Tensor
    own: int
    trees: tuple[tuple[Call, CPUAttentionMetadata, Tensor, Tensor], ...]


class TreeCPUAttentionImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention that heeds `attach`."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        masked = None if attn_metadata is None else attached(attn_metadata)
        if masked is None or not masked.rows:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        work = self._work(layer, query, kv_cache, attn_metadata, masked)
        if work.others is not None:
            super().forward(layer, query, key, value, kv_cache, work.others, output, *args, **kwargs)
        cache = scratch(kv_cache, len(work.blocks) + work.own)
        torch.index_select(kv_cache, 0, work.blocks, out=cache[: len(work.blocks)])
        everything = flat(cache)
        for call, metadata, source, destination in work.trees:
            for block, first, number in call.copies:
                cache[first : first + number] = cache[block]
            everything.index_copy_(0, destination, everything.index_select(0, source))
            rows = query.index_select(0, call.rows)
            computed = torch.empty_like(rows)
            super().forward(layer, rows, key, value, cache, metadata, computed, *args, **kwargs)
            output.index_copy_(0, call.rows, computed)
        return output

    def _work(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: CPUAttentionMetadata, masked: Masked
    ) -> Work:
        """The work of this pass, shared by all layers that are alike in what it depends on."""
        known: dict[tuple, Work] = metadata.__dict__.setdefault("tree_work", {})
        alike = (self.num_heads, self.num_kv_heads, self.head_size, self.sliding_window, kv_cache.shape[1:])
        if alike not in known:
            known[alike] = self._plan(layer, query, kv_cache, metadata, masked)
        return known[alike]

    def _plan(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: CPUAttentionMetadata, masked: Masked
    ) -> Work:
        size = kv_cache.shape[2]
        reach = [-(-(r.context + r.visible.shape[1]) // size) for r in masked.rows]
        needed = torch.cat([metadata.block_table[r.request, :n] for r, n in zip(masked.rows, reach, strict=True)])
        blocks, numbers = needed.long().unique(return_inverse=True)
        table = torch.zeros_like(metadata.block_table)
        for r, n, mine in zip(masked.rows, reach, numbers.split(reach), strict=True):
            table[r.request, :n] = mine
        own = len(blocks)
        room = sum(2 * len(r) for r in masked.rows)
        planned = calls(masked.rows, table, size, own, room, SINGLY.get(layer.isa, 0))
        layout, like = layout_of(layer), scratch(kv_cache, own + room)
        return Work(
            others=None if masked.whole_batch else self._others(layer, query, metadata, masked),
            blocks=blocks,
            own=room,
            trees=tuple(
                (
                    call,
                    self._metadata(layer, query, metadata, call),
                    elements(layout, like, call.source).flatten(),
                    elements(layout, like, call.destination).flatten(),
                )
                for call in planned
            ),
        )

    def _metadata(self, layer: Any, query: Tensor, metadata: CPUAttentionMetadata, call: Call) -> CPUAttentionMetadata:
        return replace(
            metadata,
            num_actual_tokens=len(call.rows),
            max_query_len=call.longest_query,
            query_start_loc=call.query_start_loc,
            max_seq_len=call.longest,
            seq_lens=call.seq_lens,
            block_table=call.block_table,
            scheduler_metadata=self._schedule(layer, query, call.query_start_loc, call.seq_lens),
        )

    def _others(
        self, layer: Any, query: Tensor, metadata: CPUAttentionMetadata, masked: Masked
    ) -> CPUAttentionMetadata:
        lengths = metadata.seq_lens.clone()
        for r in masked.rows:
            lengths[r.request] = metadata.query_start_loc[r.request + 1] - metadata.query_start_loc[r.request]
        schedule = self._schedule(layer, query, metadata.query_start_loc, lengths)
        return replace(metadata, seq_lens=lengths, scheduler_metadata=schedule)

    def _schedule(self, layer: Any, query: Tensor, query_start_loc: Tensor, seq_lens: Tensor) -> Tensor:
        return ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(seq_lens),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_size,
            seq_lens=seq_lens,
            dtype=query.dtype,
            query_start_loc=query_start_loc,
            causal=True,
            sliding_window_size=self.sliding_window,
            isa=layer.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            kv_cache_dtype=self.kv_cache_dtype,
        )


_scratch: dict[tuple, Tensor] = {}


def scratch(like: Tensor, blocks: int) -> Tensor:
    """[blocks, kv_heads, block_size, 2 * head_dim]; one piece of memory for all layers that are alike."""
    kind = (like.shape[1:], like.dtype)
    if kind not in _scratch or len(_scratch[kind]) < blocks:
        # Not empty: the kernel multiplies what stands in unused slots by zero, which must not be NaN.
        _scratch[kind] = torch.zeros(blocks, *like.shape[1:], dtype=like.dtype)
    return _scratch[kind][:blocks]
