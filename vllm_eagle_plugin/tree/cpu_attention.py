"""Draft trees on vLLM's CPU attention: the stock kernel over a tree's branches, see `expansion`.

Requests without a tree are computed as ever. In the same batch, requests with one are kept out of the stock
call by making them short there; what it leaves in their rows is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as ops
from vllm import envs
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata

from .expansion import Call, branches, calls
from .kv_layout import LayoutError, elements, flat, layout_of
from .old_attention import Masked, MaskedRows, attached
from .room import Room, room_behind, room_in

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

    room: bytes at the end of the allocation that their caches are in, see `room`. Without any, trees are computed
    on copies of their requests' caches, which is slower.
    """
    for layer in layers:
        if type(layer.impl) is CPUAttentionBackendImpl:
            layer.impl.__class__ = TreeCPUAttentionImpl
        elif not isinstance(layer.impl, TreeCPUAttentionImpl):
            raise TypeError(f"{type(layer.impl).__name__} cannot carry trees: {unsupported(layer)}")
        layer.impl.room = room


@dataclass(frozen=True)
class Moved:
    """[n] int64 elements of a layer's cache, and the elements of its room that they are copied to."""

    source: Tensor
    destination: Tensor


@dataclass(frozen=True)
class Work:
    """What the layers of a KV cache group do in a forward pass; worked out by the first of them."""

    #: Metadata of the requests without trees; None if there are none.
    others: CPUAttentionMetadata | None
    #: Some branch has blocks of its own.
    owns: bool
    #: Without room: a scratch cache, and the blocks [n] of the cache that it begins with copies of.
    scratch: Room | None
    copied: Tensor | None
    #: Calls, their metadata, and how the branches' blocks get their keys and values: moved there from the cache, or,
    #: where this pass computed them all, kept once more by slot mappings [rows].
    trees: tuple[tuple[Call, CPUAttentionMetadata, Moved | tuple[Tensor, ...]], ...]
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
        masked = None if attn_metadata is None else attached(attn_metadata)
        if masked is None or not masked.rows:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        fresh = key is not None and self.kv_sharing_target_layer_name is None
        work = self._work(layer, query, kv_cache, attn_metadata, masked, fresh)
        if work.others is not None:
            super().forward(layer, query, key, value, kv_cache, work.others, output, *args, **kwargs)
        if work.scratch is not None and work.copied is not None:
            torch.index_select(kv_cache, 0, work.copied, out=work.scratch.cache)
        room = work.scratch or (self._room(kv_cache) if work.owns else None)
        for call, metadata, moved in work.trees:
            cache = kv_cache
            if room is not None:
                cache = room.both
                for block, first, number in call.copies:
                    room.own[first : first + number] = room.cache[block]
                if isinstance(moved, Moved):
                    flat(room.own).index_copy_(0, moved.destination, flat(room.cache).index_select(0, moved.source))
                else:
                    for slots in moved:
                        self.do_kv_cache_update(layer, key, value, room.own, slots)
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
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: CPUAttentionMetadata, masked: Masked, fresh: bool
    ) -> Work:
        """The work of this pass, shared by all layers that are alike in what it depends on."""
        known: dict[tuple, Work] = metadata.__dict__.setdefault("tree_work", {})
        alike = (self.num_heads, self.num_kv_heads, self.head_size, self.sliding_window, kv_cache.shape[1:], fresh)
        if alike not in known:
            known[alike] = self._plan(layer, query, kv_cache, metadata, masked, fresh)
        return known[alike]

    def _plan(
        self, layer: Any, query: Tensor, kv_cache: Tensor, metadata: CPUAttentionMetadata, masked: Masked, fresh: bool
    ) -> Work:
        size, singly = kv_cache.shape[2], SINGLY.get(layer.isa, 0)
        found = [branch for rows in masked.rows for branch in branches(rows)]
        needed = sum(branch.blocks(size) for branch in found)
        table, copied, scratch, own = metadata.block_table, None, None, kv_cache
        if needed and self.room:
            own = self._room(kv_cache).own
        elif needed:
            table, copied = compact(masked.rows, table, size)
            scratch = room_in(scratch_like(kv_cache, len(copied) + needed), len(copied))
            own = scratch.own
        trees = []
        for call in calls(found, table, size, len(own), singly):
            moved: Moved | tuple[Tensor, ...]
            if fresh and call.keys is not None:
                moved = call.slot_mappings(len(query))
            elif len(call.source):
                layout, cache = layout_of(layer), kv_cache if scratch is None else scratch.cache
                moved = Moved(
                    *(elements(layout, *x).flatten() for x in ((cache, call.source), (own, call.destination)))
                )
            else:
                moved = ()
            trees.append((call, self._metadata(layer, query, metadata, call), moved))
        # Rows before a tree's, of the same request or another, are none of the masked ones.
        count = metadata.num_actual_tokens
        everything = masked.whole_batch and sum(map(len, masked.rows)) == count
        in_order = everything and len(trees) == 1 and torch.equal(trees[0][0].rows, torch.arange(count))
        return Work(
            others=None if everything else self._others(layer, query, metadata, masked),
            owns=needed > 0,
            scratch=scratch,
            copied=copied,
            trees=tuple(trees),
            in_order=in_order,
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
        lengths, starts = metadata.seq_lens.clone(), metadata.query_start_loc.tolist()
        for r in masked.rows:
            if r.first == starts[r.request]:
                lengths[r.request] = len(r)
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


def compact(rows: Sequence[MaskedRows], table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The block table with the blocks that these requests need numbered from 0, and those blocks [n]."""
    reach = [-(-(r.context + r.visible.shape[1]) // size) for r in rows]
    needed = torch.cat([table[r.request, :n] for r, n in zip(rows, reach, strict=True)])
    blocks, numbers = needed.long().unique(return_inverse=True)
    compacted = torch.zeros_like(table)
    for r, n, mine in zip(rows, reach, numbers.split(reach), strict=True):
        compacted[r.request, :n] = mine
    return compacted, blocks


_scratch: dict[tuple, Tensor] = {}


def scratch_like(like: Tensor, blocks: int) -> Tensor:
    """[blocks, kv_heads, block_size, 2 * head_dim]; one piece of memory for all layers that are alike."""
    kind = (like.shape[1:], like.dtype)
    if kind not in _scratch or len(_scratch[kind]) < blocks:
        # Not empty: the kernel multiplies what stands in unused slots by zero, which must not be NaN.
        _scratch[kind] = torch.zeros(blocks, *like.shape[1:], dtype=like.dtype)
    return _scratch[kind][:blocks]
