"""Making accepted paths linear: what stands at a path's nodes moves to the rows behind the root.

While a tree is verified node i has the row and the KV slot that a chain's i-th draft would have. Once it is known
which nodes are accepted, their keys and values, hidden states and ids are moved to the front and positions made
linear again: whatever comes after sees an ordinary chain step. Shapes are fixed; where nothing is to be moved, the
root is moved onto itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .trees import columns
from .walk import Paths


class Moves(NamedTuple):
    """[B, D] nodes whose contents go to the places of others. All sources are to be read before anything is written.

    The root, 0, onto itself where there is nothing to move: its row and its slot are there in every step, and
    nothing else is moved onto it.
    """

    source: Tensor
    destination: Tensor


def moves(paths: Paths) -> Moves:
    """Node `paths.nodes[b, d]` to place d, for every accepted one."""
    source = paths.nodes[:, 1:]
    place = columns(source) + 1
    return Moves(source, place.where(place < paths.counts[:, None], 0))


def rows(moved: Moves, first: Tensor) -> Moves:
    """[B * D] rows of a pass, in which the root of each request stands in row first [B] and its nodes behind it."""
    return Moves(*((first[:, None] + nodes).flatten() for nodes in moved))


def slots(moved: Moves, base: Tensor, blocks: Tensor, size: int) -> Moves:
    """[B * D] KV slots. base [B]: the roots' positions; blocks [B, M]: the requests' blocks of `size` slots."""

    def at(nodes: Tensor) -> Tensor:
        position = base[:, None] + nodes
        return (blocks.gather(1, position // size).long() * size + position % size).flatten()

    return Moves(*map(at, moved))


def move(states: Tensor, moved: Moves) -> None:
    """Move rows of states [T, ...] in place."""
    states.index_copy_(0, moved.destination, states.index_select(0, moved.source))


def linear(base: Tensor, nodes: int) -> Tensor:
    """[B, nodes + 1] positions of roots at base [B] and of a chain behind them."""
    return base[:, None] + torch.arange(nodes + 1, device=base.device)
