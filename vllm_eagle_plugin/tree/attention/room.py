"""Blocks that no request ever has: room behind the KV caches for the branches of trees.

vLLM's caches are views of one allocation. Made a little longer than they need, its end can be addressed as blocks
of every layer's cache: one small piece of memory that all layers use in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


def with_room(config: Any, blocks: int) -> tuple[Any, int]:
    """A copy of vLLM's `KVCacheConfig` whose allocation ends in room for this many blocks of any layer.

    Returns:
        The copy, and the room in bytes: what `Attention.enable` wants to know.
    """
    # One more: the caches need not end where a block of every layer begins.
    room = (blocks + 1) * max((t.block_stride for t in config.kv_cache_tensors), default=0)
    return replace(config, kv_cache_tensors=[replace(t, size=t.size + room) for t in config.kv_cache_tensors]), room


@dataclass(frozen=True)
class Room:
    """A layer's cache and blocks behind it. [blocks, ...] each, like the cache."""

    cache: Tensor
    own: Tensor
    #: Both, and what is between them: `own` begins at block `first`.
    both: Tensor
    first: int


def room_behind(cache: Tensor, size: int) -> Room:
    """The room, `size` bytes at the end of the allocation, as blocks of this layer's cache.

    Raises:
        ValueError: the allocation has no room.
    """
    stride, start = cache.stride(0), cache.storage_offset()
    end = cache.untyped_storage().nbytes() // cache.element_size()
    first = -(-(end - size // cache.element_size() - start) // stride)
    blocks = (end - start) // stride
    if first < cache.shape[0] or blocks <= first:
        raise ValueError(f"an allocation of {end} elements has no {size} bytes behind {cache.shape[0]} blocks")
    both = cache.as_strided((blocks, *cache.shape[1:]), cache.stride())
    return Room(cache, both[first:], both, first)
