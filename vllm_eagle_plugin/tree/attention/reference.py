"""Attention over a paged context and a tree's tail, written down plainly: what every fast path must compute."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..trees import visible
from . import Tail


def tail_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    tail: Tail,
    *,
    scale: float,
    soft_cap: float = 0.0,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[T, heads, head_dim] fp32: attention of a tail's rows among query rows [T, heads, head_dim]; zeros elsewhere.

    keys, values: [blocks, block_size, kv_heads, head_dim] paged caches, the tail's in them. blocks: [B, M] each
    request's. window: positions that a row sees, its own the last; None: all. sinks: [heads] scores of a key without
    a value that every row sees.
    """
    output = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
    for b, count in enumerate(tail.counts.tolist()):
        if not count:
            continue
        context, first = int(tail.context[b]), int(tail.first[b])
        mask = sees(tail.seen[b, :count], context, tail.newest, window)
        at = torch.arange(mask.shape[1], device=query.device)
        slots = blocks[b].long()[at // keys.shape[1]], at % keys.shape[1]
        key, value = (cache[slots].transpose(0, 1) for cache in (keys, values))
        rows = slice(first, first + count)
        output[rows] = masked_attention(query[rows], key, value, mask, scale, soft_cap, sinks)
    return output


def sees(seen: Tensor, context: int, newest: int, window: int | None = None) -> Tensor:
    """[R, keys] bool: the keys that a request's rows see, whose bitmasks are seen [R]."""
    tail = visible(seen, newest + len(seen))
    # A key's place on a row's path: the row's tail keys in front of it.
    places = tail.long().cumsum(-1) - 1
    own = torch.arange(context, device=seen.device).expand(len(seen), -1)
    positions = torch.cat([own, context + places], 1)
    mask = torch.cat([torch.ones_like(own, dtype=torch.bool), tail], 1)
    if window is not None:
        latest = context - 1 + tail.sum(-1, keepdim=True)
        mask &= positions > latest - window
    return mask


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """[R, heads, head_dim] fp32: query [R, heads, head_dim] over key and value [kv_heads, keys, head_dim] where the
    mask [R, keys] is true. Keys and values that no row sees may be anything, NaN too."""
    kv_heads, group = len(key), query.shape[1] // len(key)
    grouped = query.float().unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
    unseen = ~mask.any(0)[:, None]
    scores = grouped @ key.float().masked_fill(unseen, 0.0).mT[:, None] * scale
    if soft_cap:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    scores = scores.masked_fill(~mask, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(kv_heads, group, 1, 1).expand(-1, -1, len(mask), 1)], -1)
    weights = scores.softmax(-1)[..., : mask.shape[1]]
    output = weights @ value.float().masked_fill(unseen, 0.0)[:, None]
    return output.permute(2, 0, 1, 3).flatten(1, 2)
