"""Trees as chains: which calls of an ordinary causal kernel compute a tree's rows.

The nodes between the root and a leaf are a chain. With the keys of that chain one after another behind the
request's own, a kernel that knows no trees computes them: windows, soft-caps and sinks included, to the bit what
it computes without a tree. So each leaf gets blocks of its own for the keys behind the request's last full block;
all blocks before that are shared. Every row is computed once: with the first leaf whose path it is on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from .old_attention import MaskedRows, paths


@dataclass(frozen=True)
class Branch:
    """Rows of one request on one path, each a continuation of the one before."""

    rows: MaskedRows
    #: Which of the rows.
    members: tuple[int, ...]
    #: Tail keys between the root and the last of them.
    path: tuple[int, ...]

    @property
    def in_place(self) -> bool:
        """Its keys stand one behind the other already."""
        return self.path == tuple(range(len(self.path)))

    def blocks(self, size: int) -> int:
        """How many blocks of its own it needs."""
        return 0 if self.in_place else (self.rows.context + len(self.path) - 1) // size - self.rows.context // size + 1


def branches(rows: MaskedRows) -> list[Branch]:
    """The rows in as few branches as there are leaves among them."""
    found: list[tuple[list[int], tuple[int, ...]]] = []
    for path, row in sorted((path, row) for row, path in enumerate(paths(rows))):
        if found and found[-1][1] == path[:-1]:
            found[-1] = ([*found[-1][0], row], path)
        else:
            found.append(([row], path))
    return [Branch(rows, tuple(members), path) for members, path in found]


@dataclass(frozen=True)
class Call:
    """One call of the kernel over branches that have their own blocks at the same time; these are numbered from 0."""

    #: [n] int64 rows of the batch, in the call's order.
    rows: Tensor
    #: [requests + 1], [requests], [requests, blocks] int32.
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    #: Like `block_table`: 1 where a block is a branch's own, 0 where it is the cache's.
    owned: Tensor
    longest_query: int
    longest: int
    #: (block of the cache, first own block, number of them): copies that the branches' keys are then put into.
    copies: tuple[tuple[int, int, int], ...]
    #: [m] int64 slots in the cache of tail keys that such copies do not have in their place, and the slots in own
    #: blocks where the branches need them.
    source: Tensor
    destination: Tensor
    #: [m] rows of the batch that these tail keys were computed for; None if some are of an earlier pass.
    keys: tuple[int, ...] | None

    def slot_mappings(self, rows: int) -> tuple[Tensor, ...]:
        """The destinations of a batch's rows [rows] int64, -1 for none; as many times as a row has several.

        Raises:
            ValueError: a tail key is of an earlier pass.
        """
        if self.keys is None:
            raise ValueError("tail keys of an earlier pass have no row in this one")
        found: list[list[int]] = []
        seen: Counter[int] = Counter()
        for row, slot in zip(self.keys, self.destination.tolist(), strict=True):
            if seen[row] == len(found):
                found.append([-1] * rows)
            found[seen[row]][row] = slot
            seen[row] += 1
        return tuple(torch.tensor(slots) for slots in found)


def calls(found: Sequence[Branch], table: Tensor, size: int, room: int, singly: int) -> list[Call]:
    """The calls that compute these branches.

    table: [requests, blocks] blocks of `size` slots; room: how many own blocks there are; singly: fewer rows of a
    branch than this are a request each, which some kernels compute faster.

    Raises:
        ValueError: a branch alone needs more than there is room for.
    """
    return [_call(group, table, size, singly) for group in _fitting(found, size, room)]


def _fitting(found: Sequence[Branch], size: int, room: int) -> Iterator[list[Branch]]:
    group: list[Branch] = []
    free = room
    for branch in found:
        needed = branch.blocks(size)
        if needed > room:
            raise ValueError(f"a path of {len(branch.path)} keys needs {needed} blocks of its own; there are {room}")
        if needed > free:
            yield group
            group, free = [], room
        group.append(branch)
        free -= needed
    if group:
        yield group


def _call(group: list[Branch], table: Tensor, size: int, singly: int) -> Call:
    rows: list[int] = []
    queries: list[int] = []
    lengths: list[int] = []
    tables: list[list[int]] = []
    owned: list[int] = []
    copies: list[tuple[int, int]] = []
    source: list[int] = []
    destination: list[int] = []
    keys: list[int] = []
    known = {request: table[request].tolist() for request in {b.rows.request for b in group}}
    firsts = {id(b): i for i, b in enumerate(b for b in group if not b.in_place)}
    free = len(firsts)
    for branch in group:
        masked, context = branch.rows, branch.rows.context
        blocks = known[masked.request]
        last = (context + len(branch.path) - 1) // size
        mine = blocks[: last + 1]
        if not branch.in_place:
            more = range(free, free + branch.blocks(size) - 1)
            mine[context // size :] = [firsts[id(branch)], *more]
            if context % size:
                copies.append((blocks[context // size], firsts[id(branch)]))
            free += len(more)
            newest = masked.first + len(masked) - len(masked.positions)
            copied = size - context % size if context % size else 0
            for offset, key in enumerate(branch.path):
                if key == offset < copied:
                    continue
                keys.append(newest + key if newest + key >= masked.first else -1)
                for slots, within, at in ((source, blocks, context + key), (destination, mine, context + offset)):
                    slots.append(within[at // size] * size + at % size)
        count = len(branch.members)
        ends = range(context + len(branch.path) - count + 1, context + len(branch.path) + 1)
        alone = count < singly
        rows += [masked.first + member for member in branch.members]
        queries += [1] * count if alone else [count]
        lengths += ends if alone else [ends[-1]]
        tables += [mine] * (count if alone else 1)
        owned += [branch.blocks(size)] * (count if alone else 1)
    width = max(map(len, tables))
    return Call(
        rows=torch.tensor(rows),
        query_start_loc=torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32),
        owned=torch.tensor(
            [[0] * (len(t) - n) + [1] * n + [0] * (width - len(t)) for t, n in zip(tables, owned, strict=True)],
            dtype=torch.int32,
        ),
        longest_query=max(queries),
        longest=max(lengths),
        copies=tuple(_runs(copies)),
        source=torch.tensor(source, dtype=torch.int64),
        destination=torch.tensor(destination, dtype=torch.int64),
        keys=None if -1 in keys else tuple(keys),
    )


def _runs(copies: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Copies of the same block to blocks in a row, as one."""
    for (block, _), run in groupby(enumerate(copies), key=lambda c: (c[1][0], c[1][1] - c[0])):
        first, *more = (copy for _, (_, copy) in run)
        yield block, first, 1 + len(more)
