"""Draft trees on vLLM's CPU attention: the stock kernel over a tree's branches, see `branches`.

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

from . import Tail, attached
from .branches import Call, branches, calls
from .kv_layout import LayoutError, elements, flat, layout_of, move_slots
from .room import Room, room_behind

__all__ = ["ROOM", "SMALL_BLOCKS", "enable", "move_slots", "unsupported"]

#: Blocks behind the caches: with fewer than a step's trees have leaves, these take turns.
ROOM = 32
#: Each branch copies one block.
SMALL_BLOCKS = 32
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


def enable(layers: Iterable[Any], room: int = 0) -> None:
    """Make these layers heed `attach`. Only they change: other engines of the process are left alone.

    room: bytes at the end of the allocation that their caches are in, see `room.with_room`.
    """
    for layer in layers:
        if type(layer.impl) is CPUAttentionBackendImpl:
            layer.impl.__class__ = TreeCPUAttentionImpl
        elif not isinstance(layer.impl, TreeCPUAttentionImpl):
            raise TypeError(f"{type(layer.impl).__name__} cannot carry trees: {unsupported(layer)}")
        layer.impl.room = room


#: Elements [n] of a layer's cache and those of its room that they are copied to; or slot mappings [rows] by which
#: keys and values that the pass computed are kept once more, in the room.
Moved = tuple[Tensor, ...]


@dataclass(frozen=True)
class Work:
    """What the layers of a KV cache group do in a forward pass; worked out by the first of them."""

    #: Metadata of the requests without trees; None if there are none.
    others: CPUAttentionMetadata | None
    #: Calls, their metadata, and how the branches' blocks get their keys and values.
    trees: tuple[tuple[Call, CPUAttentionMetadata, Moved], ...]
    #: They are slot mappings.
    fresh: bool
    #: Some branch has blocks of its own.
    owns: bool
    #: There is one call, of all the pass's rows in their order: none need to be picked.
    in_order: bool


class TreeCPUAttentionImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention that heeds `attach`."""

    room = 0
    _behind: Room | None = None

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
        tail = None if attn_metadata is None else attached(attn_metadata)
        if tail is None:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        fresh = key is not None and self.kv_sharing_target_layer_name is None
        work = self._work(layer, query, kv_cache, attn_metadata, tail, fresh)
        if work.others is not None:
            super().forward(layer, query, key, value, kv_cache, work.others, output, *args, **kwargs)
        cache = kv_cache
        for call, metadata, moved in work.trees:
            if work.owns:
                room = self._room(kv_cache)
                cache = room.both
                for block, first, number in call.copies:
                    room.own[first : first + number] = kv_cache[block]
                if work.fresh:
                    for slots in moved:
                        self.do_kv_cache_update(layer, key, value, room.own, slots)
                elif moved:
                    flat(room.own).index_copy_(0, moved[1], flat(kv_cache).index_select(0, moved[0]))
                metadata.block_table = torch.add(call.block_table, call.owned, alpha=room.first)
            if work.in_order:
                return super().forward(layer, query, key, value, cache, metadata, output, *args, **kwargs)
            rows = query.index_select(0, call.rows)
            computed = torch.empty_like(rows)
            super().forward(layer, rows, key, value, cache, metadata, computed, *args, **kwargs)
            output.index_copy_(0, call.rows, computed)
        return output

    def _room(self, kv_cache: Tensor) -> Room:
        if self._behind is None or self._behind.cache.data_ptr() != kv_cache.data_ptr():
            self._behind = room_behind(kv_cache, self.room)
        return self._behind

    def _work(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: CPUAttentionMetadata, tail: Tail, fresh: bool
    ) -> Work:
        """The work of this pass, shared by all layers that are alike in what it depends on."""
        known: dict[tuple, Work] = metadata.__dict__.setdefault("tree_work", {})
        alike = (self.num_heads, self.num_kv_heads, self.head_size, self.sliding_window, kv_cache.shape[1:], fresh)
        if alike not in known:
            known[alike] = self._plan(layer, query, kv_cache, metadata, tail, fresh)
        return known[alike]

    def _plan(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: CPUAttentionMetadata, tail: Tail, fresh: bool
    ) -> Work:
        size, found = kv_cache.shape[2], branches(tail)
        owns = any(not branch.in_place for branch in found)
        own = self._room(kv_cache).own if owns else kv_cache
        planned = calls(found, metadata.block_table, size, len(own), SINGLY.get(layer.isa, 0))
        fresh = fresh and all(call.keys is not None for call in planned)
        trees = []
        for call in planned:
            moved: Moved = ()
            if fresh:
                moved = call.slot_mappings(len(query))
            elif len(call.source):
                pairs = ((kv_cache, call.source), (own, call.destination))
                moved = tuple(elements(layout_of(layer), *pair).flatten() for pair in pairs)
            trees.append((call, self._metadata(layer, query, metadata, call), moved))
        # Rows before a tree's, of the same request or another, are none of the tail's.
        rows, count = torch.cat([call.rows for call in planned]), metadata.num_actual_tokens
        in_order = len(planned) == 1 and torch.equal(rows, torch.arange(count))
        return Work(
            others=None if len(rows) == count else self._others(layer, query, metadata, tail),
            trees=tuple(trees),
            fresh=fresh,
            owns=owns,
            in_order=in_order,
        )

    def _metadata(self, layer: Any, query: Tensor, metadata: CPUAttentionMetadata, call: Call) -> CPUAttentionMetadata:
        return replace(
            metadata,
            num_actual_tokens=len(call.rows),
            max_query_len=call.longest_query,
            query_start_loc=call.query_start_loc,
            max_seq_len=int(call.seq_lens.max()),
            seq_lens=call.seq_lens,
            block_table=call.block_table,
            scheduler_metadata=self._schedule(layer, query, call.query_start_loc, call.seq_lens),
        )

    def _others(self, layer: Any, query: Tensor, metadata: CPUAttentionMetadata, tail: Tail) -> CPUAttentionMetadata:
        alone = (tail.counts > 0) & (tail.first == metadata.query_start_loc[:-1])
        lengths = metadata.seq_lens.where(~alone, tail.counts.int())
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
