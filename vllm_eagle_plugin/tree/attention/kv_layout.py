"""Where the CPU backend keeps each key and value inside its cache, learnt from its own kernel.

The backend has a layout for each instruction set: plain rows, keys transposed, pairs interleaved for matrix tiles.
All are a fixed permutation within a block of one head. So a block of known numbers is written through the
kernel that fills the cache, and read back to see where each went: right for layouts that this module never
heard of, and an error where a layout is no permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

#: Numbers are written digit by digit: each digit is exact in every cache dtype, fp8 included.
BASE = 8


class LayoutError(ValueError):
    """A cache layout that this module cannot read."""


@dataclass(frozen=True)
class Layout:
    """[block_size, head_dim] int64 each: where in a block of one head (keys, then values) an element stands."""

    keys: Tensor
    values: Tensor

    @property
    def tokens(self) -> Tensor:
        """[block_size, 2, head_dim] where a token's key and value stand."""
        return torch.stack([self.keys, self.values], 1)


def layout_of(layer: Any) -> Layout:
    """The layout of the layer's cache.

    Raises:
        LayoutError: it is no permutation of a block's elements.
    """
    cache: Tensor = layer.kv_cache
    return _learn(layer.isa, layer.dtype, cache.dtype, layer.impl.kv_cache_dtype, cache.shape[2], cache.shape[3] // 2)


@lru_cache
def _learn(isa: str, dtype: torch.dtype, cache: torch.dtype, name: str, block_size: int, head_dim: int) -> Layout:
    from vllm import _custom_ops as ops

    def write(rows: Tensor) -> Tensor:
        """[2, block_size * head_dim] what a block holds once these keys, equal to the values, are written."""
        block = torch.zeros(1, 1, 2 * block_size, head_dim, dtype=cache)
        halves, rows = block.chunk(2, dim=2), rows.to(dtype).view(block_size, 1, head_dim)
        ops.cpu_attn_reshape_and_cache(rows, rows, *halves, torch.arange(block_size), isa, kv_cache_dtype=name)
        return as_bits(block).view(2, -1)

    try:
        return learn(write, block_size, head_dim)
    except LayoutError as error:
        raise LayoutError(
            f"the KV cache's layout ({isa}, {cache}, blocks of {block_size}) is unknown: {error}"
        ) from None


def learn(write: Callable[[Tensor], Tensor], block_size: int, head_dim: int) -> Layout:
    """The layout of a cache that `write` fills: it takes rows [block_size * head_dim], token by token, as keys and
    as values, and returns the block's [2, block_size * head_dim] elements as they then stand.

    Raises:
        LayoutError: not every element is found exactly once.
    """
    elements = block_size * head_dim
    number = torch.arange(elements)
    digits = [write(torch.full((elements,), float(digit)))[:, 0] for digit in range(BASE)]
    found, unit = torch.zeros(2, elements, dtype=torch.int64), 1
    while unit < elements:
        written = write((number // unit % BASE).float())
        for digit, bits in enumerate(digits):
            found += unit * digit * (written == bits[:, None])
        unit *= BASE
    if not torch.equal(found.sort().values, number.expand(2, -1)):
        raise LayoutError("what was written as keys or values is not what a block holds")
    where = found.argsort().view(2, block_size, head_dim)
    return Layout(where[0], where[1] + elements)


def as_bits(cache: Tensor) -> Tensor:
    """The cache as integers: copied exactly, whatever they mean."""
    return cache.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[cache.element_size()])


def flat(cache: Tensor) -> Tensor:
    """[elements] every element between the cache's first and its last."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
    return as_bits(cache).as_strided((span,), (1,))


def elements(layout: Layout, cache: Tensor, slots: Tensor) -> Tensor:
    """[n, kv_heads, 2, head_dim] where in `flat(cache)` the keys and values of slots [n] stand."""
    block_size = len(layout.keys)
    heads = torch.arange(cache.shape[1]) * cache.stride(1)
    blocks = slots // block_size * cache.stride(0)
    return blocks[:, None, None, None] + heads[:, None, None] + layout.tokens[slots % block_size][:, None]


def move_slots(layers: Iterable[Any], source: Tensor, destination: Tensor) -> None:
    """Copy keys and values of slots [n] to slots [n] in the caches of these layers.

    A slot is block * block_size + offset. Every source is read before any destination is written.
    """
    source, destination, known = source.long(), destination.long(), {}
    for layer in layers:
        layout, cache = layout_of(layer), layer.kv_cache
        # The layers of a group are alike: where to read and write is worked out once.
        alike = (id(layout), cache.shape[1], cache.stride())
        if alike not in known:
            known[alike] = [elements(layout, cache, slots).flatten() for slots in (source, destination)]
        read, written = known[alike]
        everything = flat(cache)
        everything.index_copy_(0, written, everything.index_select(0, read))
