"""A result of `bench acceptance` as a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..schema import Acceptance, AcceptanceResult, Environment, Figure, Group, StepTimes
from .page import Bar, Bars, Card, Cards, Cell, Facts, Grid, Notes, Part, Report, plain
from .terminal import bounds, number, with_bounds


def acceptance_report(result: AcceptanceResult) -> Report:
    """The report."""
    figures, work = result.eagle.acceptance, result.eagle.workload
    parts: list[Part] = [*partial(result.eagle.partial), _cards(result)]
    if figures.per_position:
        parts += _positions(figures)
    parts.append(_figures(figures))
    for title, groups in groups_of(result):
        top = work.num_speculative_tokens + 1.0
        bars = [_bar(g.name, g.acceptance.acceptance_length) for g in groups]
        note = "The axis goes from 1 to k + 1."
        parts.append(Bars(f"Acceptance length {title}", bars, note, 1.0, top, pictured=True))
        parts.append(_groups(f"Figures {title}", groups))
    for histogram in result.eagle.histograms:
        total = sum(histogram.counts) or 1
        bars = [Bar(str(i), n, str(n), hint=f"{n / total:.1%}", tone="time") for i, n in enumerate(histogram.counts)]
        parts.append(Bars(histogram.name.capitalize(), bars))
    if times := result.eagle.step_ms:
        parts.append(time_bars("A decode step, milliseconds", times))
    if result.eagle.notes:
        parts.append(Notes("Note", result.eagle.notes))
    lead = (
        f"{work.method}, k = {work.num_speculative_tokens}, for {work.target}: {figures.questions} questions, "
        f"{figures.requests} answers, {result.total_output_tokens} tokens, T = {work.temperature:g}, "
        f"concurrency {work.concurrency}, {result.duration:.0f} s"
    )
    parts += [_workload(result), environment_facts(result.eagle.environment)]
    return Report("Acceptance length", _verdict(figures, work.num_speculative_tokens), lead, parts)


def _verdict(figures: Acceptance, k: int) -> str:
    length = figures.acceptance_length
    if length.value is None:
        return "Nothing was drafted."
    return (
        f"Acceptance length {with_bounds(length)}: of {k} drafted tokens {length.value - 1:.2f} are accepted, "
        "and one is the target's own."
    )


def partial(why: str | None) -> list[Part]:
    """A warning where a run ended early."""
    return [Notes("Partial", [f"The run ended early: {why}"], warn=True)] if why else []


def _cards(result: AcceptanceResult) -> Cards:
    figures = result.eagle.acceptance
    trimmed = figures.trimmed_tokens
    cut = "unknown here" if trimmed is None else f"{trimmed} tokens counted, never emitted"
    return Cards(
        [
            Card("acceptance length", number(figures.acceptance_length), _within(figures.acceptance_length)),
            Card("acceptance rate", number(figures.acceptance_rate, 3), _within(figures.acceptance_rate, 3)),
            Card("emitted per drafted step", number(figures.emitted_length), cut),
            Card("tokens per second", f"{result.output_throughput:.1f}", f"{result.mean_tpot_ms:.1f} ms per token"),
        ]
    )


def _within(figure: Figure, digits: int = 2) -> str:
    return f"95%: {bounds(figure, digits)}" if figure.low is not None else ""


def _figures(figures: Acceptance) -> Grid:
    rows = {
        "acceptance length (vLLM's)": figures.acceptance_length,
        "acceptance rate (vLLM's)": figures.acceptance_rate,
        "expected length from conditional rates": figures.expected_length,
        "emitted per drafted step, after the stop": figures.emitted_length,
        "tokens per step, plain steps included": figures.tokens_per_step,
    }
    cells = [[Cell(name, name), *_with_bounds(figure)] for name, figure in rows.items()]
    note = ""
    if figures.trimmed_tokens:
        note = f"vLLM counted {figures.trimmed_tokens} tokens that a stop condition trimmed, "
        note += f"{figures.trimmed_accepted_tokens} of them accepted drafts."
    return Grid("Acceptance", ["", "value", "95% interval"], cells, note)


def _with_bounds(figure: Figure, digits: int = 3) -> list[Cell]:
    return [Cell(number(figure, digits), figure.value or 0.0), Cell(bounds(figure, digits), figure.low or 0.0)]


def _positions(figures: Acceptance) -> list[Part]:
    pairs = list(zip(figures.per_position, figures.conditional, strict=True))
    rows = [[Cell(str(i), i), *_with_bounds(a), *_with_bounds(b)] for i, (a, b) in enumerate(pairs, 1)]
    charts = (
        ("Accepted, by position", figures.per_position, "Share of all drafted steps, as vLLM counts it."),
        (
            "Accepted given all before, by position",
            figures.conditional,
            "Share of the steps that had accepted everything before and drafted this position.",
        ),
    )
    bars: list[Part] = [
        Bars(title, [_bar(f"position {i}", f, 3) for i, f in enumerate(rates, 1)], note, top=1.0, pictured=True)
        for title, rates, note in charts
    ]
    columns = ["position", "accepted", "95% interval", "given all before", "95% interval"]
    return [*bars, Grid("Accepted, by position", columns, rows, "Whiskers above are 95% intervals.")]


def _bar(name: str, figure: Figure, digits: int = 2) -> Bar:
    return Bar(name, figure.value, number(figure, digits), figure.low, figure.high, bounds(figure, digits))


def groups_of(result: AcceptanceResult) -> list[tuple[str, list[Group]]]:
    """The groups of a result that are worth a table: those with more than one row."""
    eagle = result.eagle
    all_groups = {
        "by category": eagle.by_category,
        "by prompt length (tokens)": eagle.by_prompt_length,
        "by output position (tokens)": eagle.by_output_position,
    }
    return [(title, groups) for title, groups in all_groups.items() if len(groups) > 1]


def _groups(title: str, groups: Sequence[Group]) -> Grid:
    columns = ["group", "questions", "drafts", "accepted", "acceptance length", "95% interval"]
    rows = []
    for position, group in enumerate(groups):
        a = group.acceptance
        counts = [Cell(str(n), n) for n in (a.questions, a.num_drafts, a.accepted_tokens)]
        name = Cell(group.name, position if " to " in group.name or "more" in group.name else group.name)
        rows.append([name, *counts, *_with_bounds(a.acceptance_length, 2)])
    return Grid(title, columns, rows)


def time_bars(title: str, times: StepTimes, top: float | None = None) -> Bars:
    """Where a step's time goes."""
    pieces = {"drafting": times.draft, "verifying": times.verify, "scheduling": times.scheduling, "other": times.other}
    bars = [Bar(n, ms, f"{ms:.2f}", hint=f"{ms / times.total:.0%} of a step", tone="time") for n, ms in pieces.items()]
    return Bars(title, bars, f"Mean of {times.steps} steps: {times.total:.2f} ms.", top=top)


def _workload(result: AcceptanceResult) -> Facts:
    work = result.eagle.workload.model_dump()
    engine = work.pop("engine")
    facts = [(name.replace("_", " "), plain(value)) for name, value in work.items() if value not in (None, "")]
    return Facts("What was asked", facts + [(name.replace("_", " "), plain(v)) for name, v in engine.items()])


def environment_facts(environment: Environment) -> Facts:
    """Command, hardware and versions."""
    rows: list[tuple[str, Any]] = [("command", environment.command), ("date", environment.date)]
    rows += [(name.replace("_", " "), value) for name, value in environment.hardware.items()]
    rows += list(environment.versions.items())
    rows.append(("load average before, after", environment.load_average))
    return Facts("Where and how", [(name, plain(value)) for name, value in rows])
