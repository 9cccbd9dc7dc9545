"""What a step costs, fitted from measured steps; and what follows for any k, batch and head.

A step for B requests, each with a draft of depth d (draft positions, one after the other) verified as r rows
(a chain of k has d = k and r = k + 1; a tree has more rows than depth), takes

    target:  fixed + per_request B + per_row B r + [d > 0] rejecting
    drafter: [d > 0] drafting + d (per_draft + per_draft_request B)

milliseconds, T together. The two parts are timed and fitted apart: for chains r = d + 1, so that from T alone a
row that the target verifies could not be told from a token that the drafter drafts. All costs are at least 0,
and fitted to errors relative to T, so that small batches count as much as large ones. Decode speedup is then  length * T(plain, B) / T(shape, B), `length` being the acceptance length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ..errors import HeadError
from .speed_schema import Advice, Cost
from .statistics import expected_length


@dataclass(frozen=True)
class Shape:
    """A draft: its depth, and the rows that verifying it takes for each request."""

    depth: int
    rows: int


PLAIN = Shape(0, 1)


def chain(k: int) -> Shape:
    """A chain of k drafts."""
    return Shape(k, k + 1)


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a step: all of it, and the drafter's part."""

    total: float
    draft: float


TARGET = ("fixed", "per_request", "per_row", "rejecting")
DRAFTER = ("drafting", "per_draft", "per_draft_request")


def _target_terms(shape: Shape, batch: int) -> list[float]:
    return [1.0, batch, batch * shape.rows, float(shape.depth > 0)]


def _drafter_terms(shape: Shape, batch: int) -> list[float]:
    return [float(shape.depth > 0), shape.depth, shape.depth * batch]


def fit(measured: Mapping[tuple[Shape, int], Measured]) -> Cost:
    """Costs from the times of steps by (shape, batch).

    Raises:
        HeadError: too few settings to tell anything.
    """
    if len(measured) < 3:
        raise HeadError(
            f"step times of {len(measured)} settings", "Three or more were expected to fit costs to", "Sweep more"
        )
    totals = np.array([m.total for m in measured.values()])
    drafts = np.array([m.draft for m in measured.values()])
    target = _least(np.array([_target_terms(*setting) for setting in measured]), totals - drafts, totals)
    drafter = _least(np.array([_drafter_terms(*setting) for setting in measured]), drafts, totals)
    costs = dict(zip(TARGET + DRAFTER, map(float, [*target, *drafter]), strict=True))
    cost = Cost(**costs, rms_error=0.0)
    errors = np.array([step_ms(cost, *setting) for setting in measured]) / totals - 1
    return cost.model_copy(update={"rms_error": float(np.sqrt((errors**2).mean()))})


def _least(terms: NDArray[np.float64], times: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Costs >= 0 with the least squares of errors relative to `scale`."""
    return nnls(terms / scale[:, None], times / scale)[0]


def step_ms(cost: Cost, shape: Shape, batch: int) -> float:
    """Milliseconds of a step, by the model."""
    parts = zip(TARGET + DRAFTER, _target_terms(shape, batch) + _drafter_terms(shape, batch), strict=True)
    return sum(getattr(cost, name) * term for name, term in parts)


def decode_speedup(cost: Cost, shape: Shape, batch: int, length: float) -> float:
    """Decode speed over plain decoding's at the same batch, by the model."""
    return length * step_ms(cost, PLAIN, batch) / step_ms(cost, shape, batch)


def advise(cost: Cost, conditional: Sequence[float], batches: Sequence[int]) -> list[Advice]:
    """The best k at each batch size, and what a better head would be worth there."""
    ks = range(1, len(conditional) + 1)
    found = []
    for batch in batches:
        speedups = {0: 1.0} | {k: decode_speedup(cost, chain(k), batch, expected_length(conditional, k)) for k in ks}
        best = max(speedups, key=lambda k: speedups[k])
        found.append(
            Advice(
                concurrency=batch,
                best_k=best,
                speedup=speedups[best],
                break_even_length=1 / decode_speedup(cost, chain(best or 1), batch, 1.0),
                speedup_if_perfect=max(decode_speedup(cost, chain(k), batch, k + 1) for k in ks),
            )
        )
    return found
