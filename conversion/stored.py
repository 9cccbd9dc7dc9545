"""Tensors that stay in their files until somebody looks at them, so that heads of any size fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

#: Bytes looked at or written at once.
PIECE = 32 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor that can be loaded, and what is known of it without loading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> Stored:
        """A tensor that is in memory already."""
        return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def kind(self) -> str:
        """The dtype as people write it."""
        return str(self.dtype).removeprefix("torch.")

    def changed(self, change: Callable[[Tensor], Tensor]) -> Stored:
        """This tensor after `change`, which runs each time it is loaded."""
        with torch.device("meta"):
            after = change(torch.empty(self.shape, dtype=self.dtype))
        return Stored(tuple(after.shape), after.dtype, lambda: change(self.load()))

    def pieces(self) -> Iterator[Tensor]:
        """All values in order, flat, a few megabytes at a time."""
        tensor = self.load()
        yield from tensor.reshape(-1).split(max(1, PIECE // tensor.element_size()))


def stored_in(file: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Stored:
    """A tensor of a safetensors file; each load maps the file anew, and the mapping goes with the tensor."""

    def load() -> Tensor:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    return Stored(shape, dtype, load)
