"""Trees as chains: which calls of an ordinary causal kernel compute the rows of a tail.

The nodes between the root and a leaf are a chain. With the keys of that chain one after another behind the
request's own, a kernel that knows no trees computes them: windows, soft-caps and sinks included, to the bit what
it computes without a tree. So each leaf gets blocks of its own for the keys behind the request's last full block;
all blocks before that are shared. Every row is computed once: with the first leaf whose path it is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from . import Tail


class Branch(NamedTuple):
    """Rows of one request on one path, each a continuation of the one before."""

    request: int
    context: int
    #: Rows of the pass, the last that of the path's end.
    rows: tuple[int, ...]
    #: Tail keys between the context and the last row.
    path: tuple[int, ...]
    #: The first tail key that this pass computes, and how far the row that computes a key is behind the key's number.
    newest: int
    origin: int

    @property
    def in_place(self) -> bool:
        """Its keys stand one behind the other already."""
        return self.path == tuple(range(len(self.path)))

    def blocks(self, size: int) -> int:
        """How many blocks of its own it needs."""
        return 0 if self.in_place else (self.context + len(self.path) - 1) // size - self.context // size + 1


def branches(tail: Tail) -> list[Branch]:
    """A tail's rows in as few branches as they have leaves."""
    found = []
    columns = (t.tolist() for t in (tail.seen, tail.context, tail.counts, tail.first))
    for request, (seen, context, count, first) in enumerate(zip(*columns, strict=True)):
        paths = sorted((tuple(j for j in range(b.bit_length()) if b >> j & 1), i) for i, b in enumerate(seen[:count]))
        ends: list[tuple[list[int], tuple[int, ...]]] = []
        for path, row in paths:
            if ends and ends[-1][1] == path[:-1]:
                ends[-1] = ([*ends[-1][0], first + row], path)
            else:
                ends.append(([first + row], path))
        found += [Branch(request, context, tuple(rows), path, tail.newest, first - tail.newest) for rows, path in ends]
    return found


class Call(NamedTuple):
    """One call of the kernel over branches that have their own blocks at the same time; these are numbered from 0."""

    #: [n] int64 rows of the pass, in the call's order.
    rows: Tensor
    #: [requests + 1], [requests], [requests, blocks] int32.
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    #: Like `block_table`: 1 where a block is a branch's own, 0 where it is the cache's.
    owned: Tensor
    longest_query: int
    #: (block of the cache, first own block, number of them): copies that the branches' keys are then put into.
    copies: tuple[tuple[int, int, int], ...]
    #: [m] int64 slots in the cache of tail keys that such copies do not have in their place, and the slots in own
    #: blocks where the branches need them.
    source: Tensor
    destination: Tensor
    #: [m] rows of the pass that these tail keys were computed for; None if some are of an earlier pass.
    keys: tuple[int, ...] | None

    def slot_mappings(self, rows: int) -> tuple[Tensor, ...]:
        """The destinations of a pass's rows [rows] int64, -1 for none; as many times as a row has several."""
        found: list[list[int]] = []
        seen = [0] * rows
        for row, slot in zip(self.keys or (), self.destination.tolist(), strict=True):
            if seen[row] == len(found):
                found.append([-1] * rows)
            found[seen[row]][row] = slot
            seen[row] += 1
        return tuple(map(torch.tensor, found))


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
    queries: list[int] = []
    lengths: list[int] = []
    tables: list[list[int]] = []
    owned: list[int] = []
    copies: list[tuple[int, int]] = []
    moved: list[tuple[int | None, int, int]] = []
    known = {request: table[request].tolist() for request in {b.request for b in group}}
    # The branches' first blocks stand together, so that copies of one block are one copy.
    first, free = 0, sum(not b.in_place for b in group)
    for branch in group:
        blocks, context, end = known[branch.request], branch.context, branch.context + len(branch.path)
        mine = blocks[: (end - 1) // size + 1]
        if not branch.in_place:
            more = branch.blocks(size) - 1
            mine[context // size :] = [first, *range(free, free + more)]
            if context % size:
                copies.append((blocks[context // size], first))
            first, free = first + 1, free + more
            moved += _moved(branch, blocks, mine, size)
        count = len(branch.rows)
        alone = count if count < singly else 1
        queries += [count // alone] * alone
        lengths += range(end - count + 1, end + 1) if alone > 1 else [end]
        tables += [mine] * alone
        owned += [branch.blocks(size)] * alone
    width = max(map(len, tables))
    keys, source, destination = zip(*moved, strict=True) if moved else ((), (), ())
    return Call(
        rows=torch.tensor([row for branch in group for row in branch.rows]),
        query_start_loc=torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=torch.tensor([t + [0] * (width - len(t)) for t in tables], dtype=torch.int32),
        owned=torch.tensor(
            [[0] * (len(t) - n) + [1] * n + [0] * (width - len(t)) for t, n in zip(tables, owned, strict=True)],
            dtype=torch.int32,
        ),
        longest_query=max(queries),
        copies=tuple(_runs(copies)),
        source=torch.tensor(source, dtype=torch.int64),
        destination=torch.tensor(destination, dtype=torch.int64),
        keys=None if None in keys else tuple(keys),
    )


def _moved(branch: Branch, blocks: list[int], mine: list[int], size: int) -> Iterator[tuple[int | None, int, int]]:
    """Tail keys that a copy of the context's last block does not have in their place: the pass's row that each is of
    (None: an earlier pass's), its slot, and where the branch needs it."""
    copied = -branch.context % size
    for offset, key in enumerate(branch.path):
        if key != offset or offset >= copied:
            at, to = branch.context + key, branch.context + offset
            row = branch.origin + key if key >= branch.newest else None
            yield row, blocks[at // size] * size + at % size, mine[to // size] * size + to % size


def _runs(copies: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Copies of the same block to blocks in a row, as one."""
    for (block, _), run in groupby(enumerate(copies), key=lambda c: (c[1][0], c[1][1] - c[0])):
        first, *more = (copy for _, (_, copy) in run)
        yield block, first, 1 + len(more)
