"""What the chains of a prefix have seen: keys and values, step by step."""

from __future__ import annotations

from torch import Tensor


class ChainMemory:
    """Keys and values of a prefix and of the chains growing from each of its positions.

    The first pass runs over the prefix, causally. In step j the chain that started at position p stands
    at p + j and sees the prefix up to p and its own earlier steps; chains do not see each other. This is
    what vLLM's drafter computes one chain at a time, and EAGLE-3's training-time test in parallel.
    """

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self.steps = 0
        self.layers: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        pairs = self.layers.setdefault(layer, [])
        pairs.append((key, value))
        return pairs
