"""Acceptance figures of records, and how far they can be trusted.

Definitions (i counts draft positions from 1, all sums over steps that had drafts):

- `acceptance_length`: 1 + accepted / drafts, vLLM's `SpecDecodingLogging` (the target's own token included).
- `acceptance_rate`: accepted / drafted tokens.
- `per_position`: steps that accepted position i / all steps. vLLM's, unconditional.
- `conditional`: steps that accepted position i / steps that had accepted everything before it *and* drafted i.
- `expected_length`: 1 + sum over i of the product of the conditional rates up to i: what the length would be
  if every step drafted all k. Equal to `acceptance_length` when every step did.
- `emitted_length`: tokens really emitted per drafted step; vLLM counts a step before a stop condition trims it.
- `tokens_per_step`: emitted tokens per decode step, steps without drafts included.

Intervals are bootstrap percentile intervals over *questions*: tokens of one answer are anything but
independent, and treating steps as the sample makes intervals several times too narrow. The percentiles are
widened for few questions as in T. Hesterberg, "What Teachers Should Know About the Bootstrap" (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from .records import Record, questions

Array = NDArray[np.float64]
RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
#: Columns of a tally in front of the per-position ones.
DRAFTS, DRAFT_TOKENS, ACCEPTED, EMITTED, STEPS, TOKENS = range(6)
SCALARS = 6


@dataclass(frozen=True)
class Tally:
    """Sums by question.

    Attributes:
        sums: [P, 6 + 2k] drafts, draft tokens, accepted, emitted by drafted steps, decode steps, tokens of decode
            steps; then accepted at each position; then steps that reached each position.
        k: draft positions.
        trim_known: whether every record says what was trimmed.
        steps_known: whether every record says how many steps had no drafts.
    """

    sums: Array
    k: int
    trim_known: bool
    steps_known: bool


def tally(records: Sequence[Record], k: int) -> Tally:
    """Sums of `records` by question, for k draft positions."""
    rows = [sum((_row(record, k) for record in group), np.zeros(SCALARS + 2 * k)) for group in questions(records)]
    return Tally(
        np.array(rows).reshape(-1, SCALARS + 2 * k),
        k,
        all(record.trimmed is not None for record in records),
        all(record.trimmed is not None and record.plain_steps is not None for record in records),
    )


def _row(record: Record, k: int) -> Array:
    accepted, drafted = np.array(record.accepted, int), np.array(record.drafted, int)
    position = np.arange(k)[:, None]
    emitted = accepted.sum() + len(accepted) - (record.trimmed or 0)
    plain = record.plain_steps or 0
    scalars = [len(accepted), drafted.sum(), accepted.sum(), emitted, len(accepted) + plain, emitted + plain]
    reached = (accepted >= position) & (drafted > position)
    return np.array([*scalars, *(accepted > position).sum(1), *reached.sum(1)], float)


def estimates(sums: Array, k: int) -> dict[str, Array]:
    """Every figure from sums [..., 6 + 2k]; NaN where nothing was counted.

    Shapes: [...] for lengths and rates, [..., k] for `per_position` and `conditional`.
    """
    drafts = sums[..., DRAFTS]
    at, reached = sums[..., SCALARS : SCALARS + k], sums[..., SCALARS + k :]
    with np.errstate(divide="ignore", invalid="ignore"):
        conditional = at / reached
        return {
            "acceptance_length": 1 + sums[..., ACCEPTED] / drafts,
            "acceptance_rate": sums[..., ACCEPTED] / sums[..., DRAFT_TOKENS],
            "per_position": at / drafts[..., None],
            "conditional": conditional,
            # A position nobody reached adds nothing: the product in front of it is 0.
            "expected_length": 1 + np.nan_to_num(conditional).cumprod(-1).sum(-1),
            "emitted_length": sums[..., EMITTED] / drafts,
            "tokens_per_step": sums[..., TOKENS] / sums[..., STEPS],
        }


def point(tallied: Tally) -> dict[str, Array]:
    """The figures of all questions together."""
    return estimates(tallied.sums.sum(0), tallied.k)


@lru_cache(maxsize=32)
def resample(count: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """[resamples, count] how often each question is drawn; the same draws whenever the count is the same."""
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.float64)


def percentiles(count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentiles (as fractions) of the bootstrap distribution that bound an interval for `count` questions.

    The bootstrap's spread is too small by sqrt((n-1)/n), and normal where Student's t is due.
    """
    low = float(norm.cdf((count / (count - 1)) ** 0.5 * t.ppf((1 - confidence) / 2, count - 1)))
    return low, 1 - low


def interval(values: Array, count: int, confidence: float = CONFIDENCE) -> Array:
    """[2, ...] lower and upper bound from figures of resamples [R, ...], NaN where half of them are undefined."""
    undefined = np.isnan(values).mean(0) > 0.5
    with np.errstate(invalid="ignore"):
        known = np.where(undefined, 0.0, values)
        quantile = np.nanquantile if np.isnan(known).any() else np.quantile  # the first is far slower
        bounds = quantile(known, percentiles(count, confidence), axis=0)
    return np.where(undefined, np.nan, bounds)


def intervals(tallied: Tally, confidence: float = CONFIDENCE, resamples: int = RESAMPLES) -> dict[str, Array]:
    """For each figure its bounds [2] or [2, k]; empty with fewer than two questions: nothing to resample."""
    count = len(tallied.sums)
    if count < 2:
        return {}
    drawn = resample(count, resamples) @ tallied.sums
    return {name: interval(values, count, confidence) for name, values in estimates(drawn, tallied.k).items()}


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Bounds of sum(numerators) / sum(denominators), resampled over pairs; None with fewer than two."""
    pairs = np.array([numerators, denominators], float).T
    if len(pairs) < 2:
        return None
    drawn = resample(len(pairs)) @ pairs
    low, high = interval(drawn[:, 0] / drawn[:, 1], len(pairs), confidence)
    return float(low), float(high)


def expected_length(conditional: Sequence[float], k: int) -> float:
    """Acceptance length at k positions from conditional rates; those measured at a larger k serve a smaller one."""
    return 1 + float(np.cumprod(np.nan_to_num(np.array(conditional[:k], float))).sum())
