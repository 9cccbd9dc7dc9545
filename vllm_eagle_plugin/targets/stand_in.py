"""In place of a target that cannot be run: random tokens and random states of its sizes.

Two heads that agree on them compute the same function, whatever the target would have said; how much of a
head is accepted, they cannot show.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .observer import States, Text
from .target import Target

_TEXTS, _LENGTH = 8, 32


class StandIn:
    """What `Observer` gives, of no model."""

    def __init__(self, target: Target) -> None:
        self.target = target
        norm = target.tables.norm
        self._gain = (
            torch.ones(target.hidden_size) if norm is None else target.checkpoint[f"{norm}.weight"].load().float()
        )

    def texts(self) -> list[Text]:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.target.vocab_size, (_TEXTS, _LENGTH), generator=generator)
        return [Text(row[:4], row[4:]) for row in tokens.tolist()]

    def states(self, ids: Tensor, layers: Iterable[int]) -> States:
        """Random states at ids [B, T], the same each time that these ids are asked."""
        generator = torch.Generator().manual_seed(int((ids * torch.arange(1, ids.shape[1] + 1)).sum()))
        width = self.target.hidden_size
        draw = lambda: torch.randn(*ids.shape, width, generator=generator)  # noqa: E731
        last = draw() * self._gain
        return States({layer: draw() for layer in sorted(layers)}, last)
