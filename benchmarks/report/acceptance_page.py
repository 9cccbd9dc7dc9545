"""A result of `bench acceptance` as a page and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..schema import AcceptanceResult, Environment, Figure, Group
from .page import Bar, Bars, Card, Cards, Cell, Facts, Grid, Notes, Part, plain, render
from .terminal import bounds, groups_of, number


def acceptance_page(result: AcceptanceResult) -> str:
    """The page."""
    found, work = result.eagle.acceptance, result.eagle.workload
    length = found.acceptance_length
    parts: list[Part] = []
    if result.eagle.partial:
        parts.append(Notes("Partial", [f"The run ended early: {result.eagle.partial}"], warn=True))
    cards = [
        Card("acceptance length", number(length), _within(length)),
        Card("acceptance rate", number(found.acceptance_rate, 3), _within(found.acceptance_rate, 3)),
        Card("emitted per drafted step", number(found.emitted_length), _trimmed(found.trimmed_tokens)),
        Card("tokens per second", f"{result.output_throughput:.1f}", f"at concurrency {work.concurrency}"),
    ]
    parts.append(Cards(cards))
    if found.per_position:
        note = "Share of all drafted steps that accepted this position, as vLLM counts it; whiskers are 95% intervals."
        parts.append(Bars("Accepted, by position", _rates(found.per_position), note, top=1.0))
        note = "Share of the steps that had accepted everything before and drafted this position."
        parts.append(Bars("Accepted given all before, by position", _rates(found.conditional, "b"), note, top=1.0))
    for title, groups in groups_of(result):
        top = work.num_speculative_tokens + 1
        parts.append(Bars(f"Acceptance length {title}", _lengths(groups), "The axis goes from 1 to k + 1.", 1.0, top))
        parts.append(groups_grid(f"Figures {title}", groups))
    for histogram in result.eagle.histograms:
        total = sum(histogram.counts) or 1
        bars = [Bar(str(i), n, str(n), hint=f"{n / total:.1%}", tone="c") for i, n in enumerate(histogram.counts)]
        parts.append(Bars(histogram.name.capitalize(), bars))
    times = result.eagle.step_ms
    if times:
        pieces = {
            "drafting": times.draft,
            "verifying": times.verify,
            "scheduling": times.scheduling,
            "other": times.other,
        }
        bars = [Bar(n, ms, f"{ms:.2f}", hint=f"{ms / times.total:.0%} of a step") for n, ms in pieces.items()]
        parts.append(Bars("A decode step, milliseconds", bars, f"Mean of {times.steps} steps: {times.total:.2f} ms."))
    if result.eagle.notes:
        parts.append(Notes("Notes", result.eagle.notes))
    parts.append(_workload(result))
    parts.append(environment_facts(result.eagle.environment))
    lead = (
        f"{work.method}, {work.num_speculative_tokens} drafts per step, for {work.target}; {found.questions} questions."
    )
    return render("Acceptance length", lead, parts)


def _within(figure: Figure, digits: int = 2) -> str:
    return f"95%: {bounds(figure, digits)}" if figure.low is not None else ""


def _trimmed(tokens: int | None) -> str:
    return "unknown here" if tokens is None else f"{tokens} tokens counted, never emitted"


def _rates(figures: Sequence[Figure], tone: str = "a") -> list[Bar]:
    return [
        Bar(f"position {i}", f.value, number(f, 3), f.low, f.high, bounds(f, 3), tone) for i, f in enumerate(figures, 1)
    ]


def _lengths(groups: Sequence[Group]) -> list[Bar]:
    lengths = [(group, group.acceptance.acceptance_length) for group in groups]
    return [Bar(g.name, f.value, number(f), f.low, f.high, bounds(f)) for g, f in lengths]


def groups_grid(title: str, groups: Sequence[Group]) -> Grid:
    """A table of groups."""
    columns = ["group", "questions", "drafts", "accepted", "length", "low", "high"]
    rows = []
    for position, group in enumerate(groups):
        a, length = group.acceptance, group.acceptance.acceptance_length
        counts = [Cell(str(n), n) for n in (a.questions, a.num_drafts, a.accepted_tokens)]
        figures = [Cell("-" if v is None else f"{v:.3f}", v or 0.0) for v in (length.value, length.low, length.high)]
        name = Cell(group.name, position if " to " in group.name or "more" in group.name else group.name)
        rows.append([name, *counts, *figures])
    return Grid(title, columns, rows)


def _workload(result: AcceptanceResult) -> Facts:
    work = result.eagle.workload.model_dump()
    engine = work.pop("engine")
    facts = [(name.replace("_", " "), plain(value)) for name, value in work.items() if value not in (None, "")]
    return Facts("What was asked", facts + [(name.replace("_", " "), plain(v)) for name, v in engine.items()])


def environment_facts(found: Environment) -> Facts:
    """Command, hardware and versions."""
    rows: list[tuple[str, Any]] = [("command", found.command), ("date", found.date)]
    rows += [(name.replace("_", " "), value) for name, value in found.hardware.items()]
    rows += list(found.versions.items())
    rows.append(("load average before, after", found.load_average))
    return Facts("Where and how", [(name, plain(value)) for name, value in rows])
