"""A result of `bench compare` as a report."""

from __future__ import annotations

from collections.abc import Sequence

from ..schema import Figure
from ..speed_schema import Compare, Difference, Row
from .acceptance_page import environment_facts, partial, time_bars
from .page import Bar, Bars, Card, Cards, Cell, Grid, Notes, Part, Report
from .terminal import bounds, number

COLUMNS = ["", "speedup", "95%", "length", "95%", "answers", "tokens/s", "overhead", "ttft ms", "ms/token"]
NOTE = (
    "95%: intervals of speedup and acceptance length. Ttft: time to the first token. Overhead: tokens per step / speedup "
    "- 1. Answers at temperature 0: the same as plain decoding's; tied: they part where two tokens are as likely within "
    "rounding; wrong: they part where one is likelier."
)


def compare_report(result: Compare) -> Report:
    """The report."""
    parts: list[Part] = [*partial(result.partial), *impossible(result.rows), *_cards(result.rows)]
    parts += [speed_bars("Speedup over plain decoding", result.rows), length_bars("Acceptance length", result.rows)]
    parts += [rows_grid("Figures", result.rows, NOTE), *step_bars(result.rows)]
    wrong = [d for d in result.differences if d.tie is False]
    if wrong:
        parts.append(Notes("WRONG", [_difference(d) for d in wrong], warn=True))
    others = [_difference(d) for d in result.differences if d.tie is not False]
    parts.append(Notes("Note", [*others[:3], *([f"and {len(others) - 3} more such answers"] if others[3:] else [])]))
    parts += [Notes("Note", result.notes), environment_facts(result.environment)]
    lead = (
        f"{result.target}: {result.questions} questions, up to {result.max_tokens} tokens, T = {result.temperature:g}, "
        f"concurrency {result.rows[0].concurrency}, {result.rounds} round(s)"
        f"{', each with engines of its own' * result.fresh}, {result.engine['dtype']}"
    )
    shown = [part for part in parts if not isinstance(part, Notes) or part.notes]
    return Report("Speculative decoding against plain decoding", _verdict(result), lead, shown)


def _verdict(result: Compare) -> str:
    best = fastest(result.rows)
    said = f"{best.name}: {speed_words(best.speedup)}." if best else "No way to speculate could be judged."
    wrong = sum(row.wrong or 0 for row in result.rows)
    if wrong:
        said += f" WRONG: answers that differ from plain decoding's beyond rounding: {wrong}."
    return said


def speed_words(speedup: Figure) -> str:
    """A speed beside plain decoding's, in words: none where its interval spans 1."""
    if speedup.low is None or speedup.high is None:
        return f"{number(speedup)} times the speed of plain decoding, too few questions for an interval"
    if speedup.low <= 1 <= speedup.high:
        return f"no difference to plain decoding that this run can show, {number(speedup)} times ({bounds(speedup)})"
    how = "as fast as plain decoding" if speedup.low > 1 else "the speed of plain decoding: slower"
    return f"{number(speedup)} times {how} ({bounds(speedup)})"


def fastest(rows: Sequence[Row]) -> Row | None:
    """The fastest way to speculate that can be."""
    contenders = [r for r in rows if r.speculative_config is not None and not r.impossible]
    return max(contenders, key=lambda r: r.speedup.value or 0.0, default=None)


def _cards(rows: Sequence[Row]) -> list[Part]:
    best, plain = fastest(rows), next(r for r in rows if r.speculative_config is None)
    if best is None:
        return []
    cards = [
        Card("fastest", number(best.speedup) + "x", best.name),
        Card("plain decoding", number(plain.tokens_per_second, 1), "tokens per second"),
    ]
    if best.implied_overhead is not None:
        cards.append(Card("its overhead", f"{best.implied_overhead:+.0%}", "of a step, beyond a plain one"))
    return [Cards(cards)]


def impossible(rows: Sequence[Row]) -> list[Part]:
    """The rows that cannot be true, with the reason."""
    lines = [f"{r.name}, concurrency {r.concurrency}: {r.impossible}" for r in rows if r.impossible]
    return [Notes("IMPOSSIBLE", lines, warn=True)] if lines else []


def _difference(d: Difference) -> str:
    gap = "logit gap not measured" if d.logit_gap is None else f"logit gap {d.logit_gap:.4g}"
    if d.plain_token is None or d.token is None:
        gap = "one of them ended"
    verdict = {True: "a numeric tie", False: "NOT a tie: this is a bug", None: ""}[d.tie]
    return f"{d.name}: question {d.question_id} differs at {d.position}: {gap} {verdict}".rstrip()


def _answers(r: Row) -> str:
    """Same, tied and wrong answers in few words."""
    if r.identical is None:
        return ""
    counts = {"same": r.identical, "tied": r.tied or 0, "WRONG": r.wrong or 0}
    counts["not judged"] = r.answers - sum(counts.values())
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"


def _cells(r: Row) -> list[Cell]:
    length = r.acceptance.acceptance_length if r.acceptance else None
    overhead = r.implied_overhead
    return [
        Cell(r.name, r.name, flag=r.impossible is not None),
        Cell(number(r.speedup), r.speedup.value or 0.0, flag=r.impossible is not None),
        Cell(bounds(r.speedup), r.speedup.low or 0.0),
        Cell(number(length) if length else "", (length.value or 0.0) if length else 0.0),
        Cell(bounds(length), (length.low or 0.0) if length else 0.0),
        Cell(_answers(r), r.identical or 0, flag=bool(r.wrong)),
        Cell(number(r.tokens_per_second, 1), r.tokens_per_second.value or 0.0),
        Cell("" if overhead is None else f"{overhead:+.0%}", overhead or 0.0),
        Cell(f"{r.median_ttft_ms:.0f}", r.median_ttft_ms),
        Cell(f"{r.mean_tpot_ms:.1f}", r.mean_tpot_ms),
    ]


def rows_grid(title: str, rows: Sequence[Row], note: str = "") -> Grid:
    """Rows as a sortable table."""
    return Grid(title, COLUMNS, [_cells(r) for r in rows], note)


def speed_bars(title: str, rows: Sequence[Row]) -> Bars:
    """Speedups as bars."""
    bars = [
        Bar(r.name, s.value, number(s), s.low, s.high, bounds(s), "flag" if r.impossible else "speed")
        for r, s in ((r, r.speedup) for r in rows)
    ]
    note = "Tokens per second over those of plain decoding, same questions, interleaved."
    return Bars(title, bars, note, level=1.0, pictured=True)


def length_bars(title: str, rows: Sequence[Row]) -> Bars:
    """Acceptance lengths as bars, of the rows that draft."""
    lengths = [(r.name, r.acceptance.acceptance_length) for r in rows if r.acceptance]
    bars = [Bar(name, f.value, number(f), f.low, f.high, bounds(f)) for name, f in lengths]
    return Bars(title, bars, "Drawn from 1: the target's own token.", 1.0, pictured=True)


def step_bars(rows: Sequence[Row]) -> list[Part]:
    """Where a step's time goes, for each row that could be timed."""
    timed = [(r.name, r.step_ms) for r in rows if r.step_ms]
    top = max((times.total for _, times in timed), default=None)
    return [time_bars(f"A decode step of {name}, milliseconds", times, top) for name, times in timed]
