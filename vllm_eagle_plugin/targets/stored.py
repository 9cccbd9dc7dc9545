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
    #: Some rows, without the others passing through memory; None where they are in memory anyway.
    read_rows: Callable[[int, int], Tensor] | None = None

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

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a matrix."""
        return self.load()[start:stop] if self.read_rows is None else self.read_rows(start, stop)

    def gather(self, ids: Tensor) -> Tensor:
        """The rows `ids` of a matrix, without the pages around each of them adding up."""
        if self.read_rows is None:
            return self.load()[ids]
        return torch.cat([self.read_rows(i, i + 1).clone() for i in ids.tolist()])

    def pieces(self) -> Iterator[Tensor]:
        """All values in order, flat, a few megabytes at a time."""
        if self.read_rows is None or len(self.shape) != 2:
            tensor = self.load()
            yield from tensor.reshape(-1).split(max(1, PIECE // tensor.element_size()))
            return
        step = max(1, PIECE // (self.shape[1] * self.dtype.itemsize))
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0])).reshape(-1)


def stored_in(file: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Stored:
    """A tensor of a safetensors file; each load maps the file anew, and the mapping goes with the tensor."""

    def load() -> Tensor:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    def read_rows(start: int, stop: int) -> Tensor:
        with safe_open(file, framework="pt") as opened:
            return opened.get_slice(name)[start:stop]

    return Stored(shape, dtype, load, read_rows)
