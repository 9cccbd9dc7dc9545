"""From records to reported figures: totals, groups, histograms, latencies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .records import Record, with_steps
from .schema import Acceptance, Figure, Group, Histogram
from .statistics import ACCEPTED, DRAFT_TOKENS, DRAFTS, Array, intervals, point, tally

#: Lower bounds of the buckets of prompt lengths and of output positions, in tokens.
PROMPT_BUCKETS = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
OUTPUT_BUCKETS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def acceptance(records: Sequence[Record], k: int) -> Acceptance:
    """Acceptance of `records`, k draft positions, with intervals where there are two questions or more."""
    tallied = tally(records, k)
    values, bounds = point(tallied), intervals(tallied)
    total = tallied.sums.sum(0)
    unknown = {"emitted_length": tallied.trim_known, "tokens_per_step": tallied.steps_known}

    def figure(name: str) -> Any:
        value = values[name] if unknown.get(name, True) else np.full_like(values[name], np.nan)
        low, high = bounds.get(name, np.full((2, *value.shape), np.nan))
        if value.ndim:
            return [_figure(*of) for of in zip(value, low, high, strict=True)]
        return _figure(value, low, high)

    return Acceptance(
        questions=len(tallied.sums),
        requests=len(records),
        num_drafts=int(total[DRAFTS]),
        draft_tokens=int(total[DRAFT_TOKENS]),
        accepted_tokens=int(total[ACCEPTED]),
        **{name: figure(name) for name in values},
        trimmed_tokens=sum(r.trimmed or 0 for r in records) if tallied.trim_known else None,
        trimmed_accepted_tokens=sum(r.trimmed_accepted or 0 for r in records) if tallied.trim_known else None,
    )


def _figure(value: Array, low: Array, high: Array) -> Figure:
    known = not np.isnan(value)
    bounded = known and not np.isnan(low)
    return Figure(
        value=float(value) if known else None,
        low=float(low) if bounded else None,
        high=float(high) if bounded else None,
    )


def by_category(records: Sequence[Record], k: int) -> list[Group]:
    """One group a category, in the order of the prompt file; none if the questions have no categories."""
    names = list(dict.fromkeys(record.category for record in records))
    return [] if names in ([], [""]) else _groups(records, k, names, lambda record: record.category)


def by_prompt_length(records: Sequence[Record], k: int) -> list[Group]:
    """Groups of requests with prompts of similar length."""
    names = _bucket_names(PROMPT_BUCKETS)
    return _groups(records, k, names, lambda record: names[_bucket(PROMPT_BUCKETS, record.prompt_tokens)])


def by_output_position(records: Sequence[Record], k: int) -> list[Group]:
    """Groups of steps that began at similar positions of the answer."""
    names = _bucket_names(OUTPUT_BUCKETS)
    groups = []
    for i, name in enumerate(names):
        parts = []
        for record in records:
            steps = [s for s, at in enumerate(record.step_starts()) if _bucket(OUTPUT_BUCKETS, at) == i]
            if steps:
                parts.append(with_steps(record, steps))
        if parts:
            groups.append(Group(name=name, acceptance=acceptance(parts, k)))
    return groups


def _groups(records: Sequence[Record], k: int, names: list[str], key: Callable[[Record], str]) -> list[Group]:
    members = {name: [record for record in records if key(record) == name] for name in names}
    return [Group(name=n or "(none)", acceptance=acceptance(rs, k)) for n, rs in members.items() if rs]


def _bucket(bounds: tuple[int, ...], value: int) -> int:
    return int(np.searchsorted(bounds, value, side="right")) - 1


def _bucket_names(bounds: tuple[int, ...]) -> list[str]:
    return [f"{a} to {b - 1}" for a, b in itertools.pairwise(bounds)] + [f"{bounds[-1]} and more"]


def histograms(records: Sequence[Record], k: int) -> list[Histogram]:
    """How often a step accepted 0, 1, ... k drafts, and how often it drafted so many."""
    return [
        Histogram(
            name=name, counts=np.bincount([n for r in records for n in values(r)] or [0], minlength=k + 1).tolist()
        )
        for name, values in (
            ("accepted drafts per step", lambda r: r.accepted),
            ("drafted tokens per step", lambda r: r.drafted),
        )
        if any(values(r) for r in records)
    ]


def latencies(records: Sequence[Record]) -> dict[str, float]:
    """vLLM's latency keys: mean, median, std and p99 milliseconds of ttft, tpot and itl."""
    tpot = [(r.latency - r.ttft) / (r.output_tokens - 1) for r in records if r.output_tokens > 1]
    of = {"ttft": [r.ttft for r in records], "tpot": tpot, "itl": [gap for r in records for gap in r.itl]}
    found: dict[str, float] = {}
    for name, seconds in of.items():
        values = 1e3 * np.array(seconds or [0.0])
        summaries = {
            "mean": values.mean(),
            "median": np.median(values),
            "std": values.std(),
            "p99": np.percentile(values, 99),
        }
        found |= {f"{kind}_{name}_ms": float(value) for kind, value in summaries.items()}
    return found
