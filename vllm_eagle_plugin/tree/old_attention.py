"""Attention of rows that each see their own choice of the newest keys: its description and its mathematics.

A tree's nodes stand behind their request's tokens one after another, so a node must not see all keys before it
but only the request's own and its ancestors'. Free of vLLM and of any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Where `attach` leaves the rows on a metadata object.
ATTRIBUTE = "masked_rows"


@dataclass(frozen=True)
class MaskedRows:
    """Query rows of one request in one forward pass, and which keys they see.

    Every row sees the request's keys [0, context), and of the `tail` keys behind those the ones that `visible`
    says. The rows are always the last `rows` keys of the tail: all of it where a tree is verified, the newest
    level where one is drafted.
    """

    #: Index of the request in the batch.
    request: int
    #: The first of the rows among the batch's query rows; the others follow it.
    first: int
    context: int
    #: [rows, tail] bool. A row sees itself.
    visible: Tensor
    #: [tail] int64 position of each tail key, counted from `context`: what a sliding window counts.
    positions: Tensor

    def __post_init__(self) -> None:
        rows, tail = self.visible.shape
        if self.positions.shape != (tail,) or rows > tail:
            raise ValueError(f"{rows} rows over {tail} keys, but positions {tuple(self.positions.shape)}")

    def __len__(self) -> int:
        return len(self.visible)


@dataclass(frozen=True)
class Masked:
    """What a metadata object carries."""

    rows: tuple[MaskedRows, ...]
    #: No request of the batch goes without.
    whole_batch: bool


def attach(metadata: Any, rows: Sequence[MaskedRows], whole_batch: bool) -> None:
    """Have the layers that read this attention metadata mask these rows.

    Each KV cache group has metadata of its own, and with it its own block table [requests, blocks].
    """
    setattr(metadata, ATTRIBUTE, Masked(tuple(rows), whole_batch))


def attached(metadata: Any) -> Masked | None:
    return getattr(metadata, ATTRIBUTE, None)


def paths(rows: MaskedRows) -> list[tuple[int, ...]]:
    """The tail keys that each row sees, in the order of their positions.

    Raises:
        ValueError: they are no path: not exactly one key at each position up to the row's own.
    """
    seen, positions = rows.visible.tolist(), rows.positions.tolist()
    order = sorted(range(len(positions)), key=positions.__getitem__)
    found = [tuple(key for key in order if row[key]) for row in seen]
    for row, path in enumerate(found, len(positions) - len(seen)):
        if [positions[key] for key in path] != list(range(len(path))) or path[-1:] != (row,):
            raise ValueError(f"row {row} sees the tail keys {path} at {[positions[k] for k in path]}: no path to it")
    return found


def sees(rows: MaskedRows, window: int | None = None) -> Tensor:
    """[rows, context + tail] bool: the keys that each row sees, the request's own and the tail's.

    window: how many positions a row sees, its own the last; None for all.
    """
    visible, positions = rows.visible, rows.positions
    mask = torch.cat([visible.new_ones(len(rows), rows.context), visible], 1)
    if window is not None:
        own = torch.arange(rows.context, device=positions.device)
        at = torch.cat([own, rows.context + positions])
        mask &= at > at[-len(rows) :, None] - window
    return mask


@dataclass(frozen=True)
class Part:
    """Attention over some of the keys: enough to be merged with the attention over others.

    output: [rows, heads, head_dim] fp32, log_sum: [rows, heads] fp32 logarithm of the sum of exponentiated
    scores, -inf where a row sees none of these keys.
    """

    output: Tensor
    log_sum: Tensor


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, soft_cap: float = 0.0
) -> Part:
    """Attention of query [rows, heads, head_dim] over key and value [kv_heads, keys, head_dim] where the mask
    [rows, keys] is true; in fp32. What a row does not see may be anything, NaN too."""
    kv_heads, group = len(key), query.shape[1] // len(key)
    grouped = query.float().unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
    unseen = ~mask.any(0)[:, None]
    scores = grouped @ key.float().masked_fill(unseen, 0.0).mT[:, None] * scale
    if soft_cap:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    scores = scores.masked_fill(~mask, -math.inf)
    log_sum = scores.logsumexp(-1)
    weights = (scores - log_sum.masked_fill(log_sum.isneginf(), 0.0)[..., None]).exp()
    output = weights @ value.float().masked_fill(unseen, 0.0)[:, None]
    return Part(output.permute(2, 0, 1, 3).flatten(1, 2), log_sum.permute(2, 0, 1).flatten(1, 2))


def merge(*parts: Part, sinks: Tensor | None = None) -> Tensor:
    """[rows, heads, head_dim] fp32: attention over the keys of all parts together.

    sinks: [heads] scores of a key without a value that every row sees.
    """
    sums = torch.stack([p.log_sum for p in parts])
    every = sums if sinks is None else torch.cat([sums, sinks.float().expand_as(sums[:1])])
    weights = (sums - every.logsumexp(0)).exp()
    # A part that a row sees nothing of may hold anything there: some kernels leave such rows unwritten.
    outputs = torch.stack([p.output.float() for p in parts]).masked_fill(sums.isneginf()[..., None], 0.0)
    return (weights[..., None] * outputs).sum(0)
