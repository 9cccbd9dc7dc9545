"""Attention of a tail's rows over a paged KV cache, in one Triton kernel: what `reference` computes.

Launch shapes follow from the host's numbers alone, and nothing is read back: the call can be part of a CUDA graph.
With another kernel's attention over the contexts given, only the tail is computed here, and the two are merged.
Runs under Triton's interpreter, where it is tested against the reference, and compiles for GPUs. Not run on one yet.
"""

# mypy: disallow-untyped-defs=False
from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import Tail

#: Bits of a row's mask.
KEYS = 64


class Part(NamedTuple):
    """Another kernel's attention over the contexts."""

    #: [T, heads, head_dim], rows as the query's.
    output: Tensor
    #: [heads, T] fp32 logarithm of the sum of exponentiated scores; infinite, of either sign, for no keys.
    log_sum: Tensor


def tail_attention(
    output: Tensor,
    query: Tensor,
    kv_cache: Tensor,
    blocks: Tensor,
    tail: Tail,
    *,
    scale: float,
    soft_cap: float = 0.0,
    window: int | None = None,
    sinks: Tensor | None = None,
    context: Part | None = None,
) -> None:
    """Write the attention of a tail's rows into the output; its other rows are left alone.

    Args:
        output, query: [T, heads, head_dim] of the pass.
        kv_cache: [blocks, kv_heads, block_size, 2 * head_dim], keys before values, in any memory order of the first
            three: what vLLM's FlashAttention, FlashInfer and Triton backends bind to their layers.
        blocks: [B, M] int32 each request's.
        window: positions that a row sees, its own the last; None: all.
        sinks: [heads] scores of a key without a value that every row sees.
        context: attention to the keys in front of the tail, if it is known; not with a window, which cuts them
            elsewhere for each row. Nor may sinks be in it.
    """
    heads, head_dim = query.shape[1:]
    kv_heads, block_size = kv_cache.shape[1:3]
    requests, most = tail.seen.shape
    fixed = shapes(head_dim, heads // kv_heads, block_size, most, kv_cache.element_size())
    fixed |= {"SOFT_CAP": soft_cap > 0, "WINDOW": window is not None}
    _kernel[(requests, kv_heads, triton.cdiv(most * fixed["GROUP"], fixed["TILE_ROWS"]))](
        output,
        query,
        kv_cache,
        blocks,
        tail.seen,
        tail.context,
        tail.counts,
        tail.first,
        sinks,
        context.output if context else None,
        context.log_sum if context else None,
        scale,
        soft_cap,
        window or 0,
        *output.stride()[:2],
        *query.stride()[:2],
        *kv_cache.stride()[:3],
        blocks.stride(0),
        tail.seen.stride(0),
        *(context.output.stride()[:2] if context else (0, 0)),
        context.log_sum.stride(0) if context else 0,
        **fixed,
    )


def shapes(head_dim: int, group: int, block_size: int, most_rows: int, element_size: int) -> dict[str, int]:
    """What the kernel is compiled for. In fp32, products take no tensor cores, and large tiles only spill registers."""
    tile_rows = min(16 if element_size == 4 else 64, max(16, triton.next_power_of_2(most_rows * group)))
    return {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "HEAD_PADDED": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK": block_size,
        "TILE_ROWS": tile_rows,
        "TILE_KEYS": 32 if element_size == 4 or head_dim > 128 else 64,
        "KEYS": KEYS,
    }


@triton.jit
def _kernel(
    output,
    query,
    cache,
    blocks,
    seen,
    contexts,
    counts,
    firsts,
    sinks,
    context_output,
    context_log_sum,
    scale,
    soft_cap,
    window,
    output_row,
    output_head,
    query_row,
    query_head,
    cache_block,
    cache_head,
    cache_slot,
    blocks_row,
    seen_row,
    part_row,
    part_head,
    sum_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    KEYS: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    count = tl.load(counts + request)
    if tl.program_id(2) * TILE_ROWS >= count * GROUP:
        return
    # Each of a tile's rows is one query head's of one of the request's rows.
    m = tl.program_id(2) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    kept = m < count * GROUP
    mine = tl.load(seen + request * seen_row + m // GROUP, mask=kept, other=0)
    row = tl.load(firsts + request) + m // GROUP
    head = kv_head * GROUP + m % GROUP
    dims = tl.arange(0, HEAD_PADDED)
    whole = kept[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(query + row[:, None] * query_row + head[:, None] * query_head + dims[None, :], mask=whole, other=0.0)
    bits = ((mine[:, None] >> tl.arange(0, KEYS)[None, :]) & 1).to(tl.int32)
    context = tl.load(contexts + request).to(tl.int32)
    # Positions in the tail are counted from the context's end.
    depth = tl.sum(bits, 1) - 1
    table = blocks + request * blocks_row
    cache += kv_head * cache_head

    if context_output is None:
        top = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((TILE_ROWS,), tl.float32)
        mixed = tl.zeros((TILE_ROWS, HEAD_PADDED), tl.float32)
        begin = 0
        if WINDOW:
            begin = tl.maximum(context + tl.min(tl.where(kept, depth, KEYS), 0) - window + 1, 0)
        for tile in range(begin, context, TILE_KEYS):
            key = tile + tl.arange(0, TILE_KEYS)
            there = key < context
            visible = kept[:, None] & there[None, :]
            if WINDOW:
                visible = visible & (key[None, :] > (context + depth - window)[:, None])
            top, total, mixed = _attend(
                q, cache, table, key, there, visible, dims, top, total, mixed, scale, soft_cap,
                cache_block, cache_slot, HEAD_DIM, BLOCK, SOFT_CAP,
            )  # fmt: skip
    else:
        top = tl.load(context_log_sum + head * sum_head + row, mask=kept, other=float("-inf"))
        # Some kernels call the logarithm of no sum plus infinity, and leave the output unwritten.
        top = tl.where(top == float("inf"), float("-inf"), top)
        any_keys = top > float("-inf")
        total = tl.where(any_keys, 1.0, 0.0)
        mixed = tl.load(
            context_output + row[:, None] * part_row + head[:, None] * part_head + dims[None, :],
            mask=whole & any_keys[:, None],
            other=0.0,
        ).to(tl.float32)

    tail = tl.arange(0, KEYS)
    visible = bits > 0
    if WINDOW:
        visible = visible & (tl.cumsum(bits, 1) - 1 > (depth - window)[:, None])
    # What no row sees may be anything, NaN too.
    there = tl.max(visible.to(tl.int32), 0) > 0
    top, total, mixed = _attend(
        q, cache, table, context + tail, there, visible, dims, top, total, mixed, scale, soft_cap,
        cache_block, cache_slot, HEAD_DIM, BLOCK, SOFT_CAP,
    )  # fmt: skip
    if sinks is not None:
        total += tl.exp(tl.load(sinks + head).to(tl.float32) - top)
    mixed = mixed / total[:, None]
    to = output + row[:, None] * output_row + head[:, None] * output_head + dims[None, :]
    tl.store(to, mixed.to(output.dtype.element_ty), mask=whole)


@triton.jit
def _attend(
    q,
    cache,
    table,
    key,
    there,
    visible,
    dims,
    top,
    total,
    mixed,
    scale,
    soft_cap,
    cache_block,
    cache_slot,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFT_CAP: tl.constexpr,
):
    """Add the keys at these positions of a request to its rows' highest scores, sums and weighted values."""
    block = tl.load(table + key // BLOCK, mask=there, other=0).to(tl.int64)
    at = cache + block[:, None] * cache_block + (key % BLOCK)[:, None] * cache_slot + dims[None, :]
    inside = there[:, None] & (dims < HEAD_DIM)[None, :]
    k = tl.load(at, mask=inside, other=0.0)
    v = tl.load(at + HEAD_DIM, mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFT_CAP:
        # Beyond 15, tanh is 1 in fp32, and exp would overflow.
        twice = tl.exp(tl.minimum(tl.maximum(scores / soft_cap, -15.0), 15.0) * 2.0)
        scores = soft_cap * (twice - 1.0) / (twice + 1.0)
    scores = tl.where(visible, scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet has no highest score to subtract.
    base = tl.where(highest > float("-inf"), highest, 0.0)
    weights = tl.exp(scores - base[:, None])
    fading = tl.exp(top - base)
    total = total * fading + tl.sum(weights, 1)
    mixed = mixed * fading[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return highest, total, mixed
