"""Looking at the numbers in tensors: what no trained weight is, and whether two tables are one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HeadError
from ..targets.stored import Stored


class Range:
    """Smallest and largest value of a tensor that is seen piece by piece."""

    def __init__(self, name: str, dimensions: int) -> None:
        self.name, self.dimensions = name, dimensions
        self.low, self.high = float("inf"), float("-inf")
        self.count = 0

    def see(self, piece: Tensor) -> None:
        """Take in a piece; raises `HeadError` for values that no trained weight has."""
        low, high = (float(v) for v in torch.aminmax(piece.float() if piece.itemsize == 1 else piece))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN too
            raise HeadError(
                f"tensor {self.name} holds NaN or infinite values",
                "Trained weights are finite",
                "Export the head again from an earlier checkpoint",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += piece.numel()

    def check(self) -> None:
        """Raise `HeadError` if the whole tensor was one value."""
        if self.dimensions == 2 and self.count > 1 and self.low == self.high:
            raise HeadError(
                f"tensor {self.name} is all {'zeros' if self.low == 0 else self.low}",
                "A trained matrix is not",
                "Was the head exported before its weights were gathered?",
            )


def check_values(name: str, tensor: Stored) -> None:
    """Raise `HeadError` unless every weight is a finite number and no matrix is constant."""
    seen = Range(name, len(tensor.shape))
    for piece in tensor.pieces():
        seen.see(piece)
    seen.check()


def same_weights(own: Stored, target: Stored, rows: int | None = None) -> bool:
    """Whether the first `rows` of two tables are the same up to the precision they are stored in."""
    if own.shape[1:] != target.shape[1:] or (rows is None and own.shape != target.shape):
        return False
    count = own.shape[0] if rows is None else rows
    step = max(1, (1 << 22) // max(1, own.shape[1]))
    for start in range(0, count, step):
        ours, theirs = (t.rows(start, min(start + step, count)) for t in (own, target))
        if not (torch.equal(ours, theirs.to(ours.dtype)) or torch.equal(ours.to(theirs.dtype), theirs)):
            return False
    return True


def mean_cosine(own: Stored, target: Stored, ids: Tensor | None = None, samples: int = 512) -> float:
    """Mean cosine of sampled rows of two tables; row i of `own` stands for row `ids[i]` of `target`."""
    count = min(own.shape[0], target.shape[0] if ids is None else len(ids))
    rows = torch.linspace(0, count - 1, samples).long().unique()
    theirs = target.gather(rows if ids is None else ids[rows]).float()
    return float(torch.cosine_similarity(own.gather(rows).float(), theirs, -1).mean())
