"""`bench gate`: has acceptance fallen below a stored baseline, beyond noise?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ..errors import HeadError, UsageError
from .records import questions
from .schema import SCHEMA_VERSION, AcceptanceResult, Environment, Model, Workload
from .statistics import percentiles, resample

#: What must be the same in both runs for their acceptance to be comparable.
SAME = ("num_speculative_tokens", "prompts_sha256", "temperature", "max_tokens", "all_turns", "seeds")
CONFIDENCE = 0.95


class Counted(Model):
    """What one question contributed."""

    question_id: str
    drafts: int
    accepted: int


class Baseline(Model):
    """A stored measurement, with where it came from."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["baseline"] = "baseline"
    acceptance_length: float
    workload: Workload
    environment: Environment
    questions: list[Counted]


class Verdict(Model):
    """What the gate says."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["gate"] = "gate"
    passed: bool
    acceptance_length: float
    baseline_acceptance_length: float
    change: float = Field(description="length / baseline length - 1")
    at_most: float = Field(description=f"Upper {CONFIDENCE:.0%} bound of the change, over questions in pairs.")
    tolerance: float
    detectable: float = Field(description="A fall of about this much would have been told from noise and failed.")
    reason: str


def baseline_of(result: AcceptanceResult) -> Baseline:
    """A result as a baseline.

    Raises:
        HeadError: it is partial, has totals only, or nothing was drafted.
    """
    eagle = result.eagle
    if eagle.partial:
        raise HeadError(f"the result is partial: {eagle.partial}", "A whole run was expected", "Measure again")
    if eagle.source != "records":
        raise HeadError("the result has totals only", "Figures of single requests were expected", *eagle.notes[:1])
    counted = [
        Counted(
            question_id=group[0].question_id,
            drafts=sum(len(r.accepted) for r in group),
            accepted=sum(sum(r.accepted) for r in group),
        )
        for group in questions(eagle.requests)
    ]
    length = eagle.acceptance.acceptance_length.value
    if length is None or len(counted) < 2:
        raise HeadError(
            f"{eagle.acceptance.num_drafts} drafts in {len(counted)} questions", "Drafts in two questions were expected"
        )
    return Baseline(acceptance_length=length, workload=eagle.workload, environment=eagle.environment, questions=counted)


def judge(result: AcceptanceResult, baseline: Baseline, tolerance: float) -> Verdict:
    """Whether acceptance fell by more than `tolerance` (a fraction of the length), beyond noise.

    Questions are resampled in pairs, so that hard and easy ones do not count as noise. The gate fails when
    even the upper bound of the change lies below -tolerance.

    Raises:
        UsageError: the two did not ask the same in the same way.
        HeadError: the result cannot be judged.
    """
    now = baseline_of(result)
    differ = [
        f"{name} was {getattr(baseline.workload, name)!r} and is {getattr(now.workload, name)!r}"
        for name in SAME
        if getattr(baseline.workload, name) != getattr(now.workload, name)
    ]
    if differ:
        raise UsageError(
            f"not the baseline's workload: {'; '.join(differ)}",
            "The same questions, asked in the same way, were expected",
            "Measure with the baseline's settings, or store a new one with --update",
        )
    if [c.question_id for c in now.questions] != [c.question_id for c in baseline.questions]:
        raise HeadError("other questions were answered than in the baseline", "", "Measure again, all of them")
    upper = upper_bound(now.questions, baseline.questions)
    change = now.acceptance_length / baseline.acceptance_length - 1
    passed = upper >= -tolerance
    detectable = tolerance + max(0.0, upper - change)
    reason = f"acceptance length {now.acceptance_length:.3f}, baseline {baseline.acceptance_length:.3f}: {change:+.1%}"
    if not passed:
        reason += f", a fall of at least {-upper:.1%} at {CONFIDENCE:.0%} confidence, and {tolerance:.1%} is tolerated"
    elif change < -tolerance:
        reason += f", more than the {tolerance:.1%} tolerated but not beyond noise: ask more questions to be sure"
    return Verdict(
        passed=passed,
        acceptance_length=now.acceptance_length,
        baseline_acceptance_length=baseline.acceptance_length,
        change=change,
        at_most=upper,
        tolerance=tolerance,
        detectable=detectable,
        reason=reason,
    )


def upper_bound(now: Sequence[Counted], before: Sequence[Counted]) -> float:
    """Upper bound of length / length before - 1, the questions resampled in pairs."""
    sums = np.array([(a.drafts, a.accepted, b.drafts, b.accepted) for a, b in zip(now, before, strict=True)], float)
    drawn = resample(len(sums)) @ sums
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = (1 + drawn[:, 1] / drawn[:, 0]) / (1 + drawn[:, 3] / drawn[:, 2]) - 1
    return float(np.nanquantile(changes, percentiles(len(sums), 2 * CONFIDENCE - 1)[1]))


def write_baseline(result: AcceptanceResult, file: Path) -> Baseline:
    """Store a result as the baseline; the old one stays until the new one is whole."""
    made = baseline_of(result)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(made.model_dump_json(indent=1) + "\n")
    partial.replace(file)
    return made
