"""Results of `bench compare` and `bench sweep` in a terminal, as pages and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..speed_schema import Compare, Row
from .acceptance_page import environment_facts
from .page import Bar, Bars, Card, Cards, Cell, Grid, Notes, Part, render
from .plots import BLUE, GREEN, bars, new_figure, save
from .terminal import bounds, number

COLUMNS = ("", "tokens/s", "speedup", "95%", "length", "95%", "overhead", "ttft ms", "ms/token", "same")


def show_compare(console: Console, result: Compare) -> None:
    """Print a result of `bench compare`."""
    console.print(
        f"{result.target}: {result.questions} questions, up to {result.max_tokens} tokens, T = {result.temperature:g}, "
        f"concurrency {result.rows[0].concurrency}, {result.rounds} round(s){', each with engines of its own' * result.fresh}, {result.engine['dtype']}"
    )
    if result.partial:
        console.print(f"PARTIAL: {result.partial}", style="bold red")
    console.print(rows_table(result.rows))
    for line in remarks(result):
        console.print(line)


def rows_table(rows: Sequence[Row]) -> Table:
    """Rows as a table for the terminal."""
    table = Table(*COLUMNS)
    for r in rows:
        table.add_row(*(cell.text for cell in _cells(r)), style="red" if r.impossible else None)
    return table


def impossible_rows(rows: Sequence[Row]) -> list[str]:
    """The rows that cannot be true, with the reason."""
    return [f"{r.name}, concurrency {r.concurrency}: {r.impossible}" for r in rows if r.impossible]


def remarks(result: Compare) -> list[str]:
    """What must be said about the rows: impossible speedups, differing answers, a busy machine."""
    lines = [f"IMPOSSIBLE: {line}" for line in impossible_rows(result.rows)]
    for d in result.differences:
        gap = "logit gap not measured" if d.logit_gap is None else f"logit gap {d.logit_gap:.4g}"
        if d.plain_token is None or d.token is None:
            gap = "one of them ended"
        verdict = {True: "a numeric tie", False: "NOT a tie: this is a bug", None: ""}[d.tie]
        lines.append(f"{d.name}: question {d.question_id} differs at {d.position}: {gap} {verdict}".rstrip())
    return lines + result.notes


def _cells(r: Row) -> list[Cell]:
    length = r.acceptance.acceptance_length if r.acceptance else None
    overhead = r.implied_overhead
    same = "" if r.identical is None else f"{r.identical} of {r.answers}"
    return [
        Cell(r.name, r.name),
        Cell(number(r.tokens_per_second, 1), r.tokens_per_second.value or 0.0),
        Cell(number(r.speedup), r.speedup.value or 0.0, flag=r.impossible is not None),
        Cell(bounds(r.speedup), r.speedup.low or 0.0),
        Cell(number(length) if length else "", (length.value or 0.0) if length else 0.0),
        Cell(bounds(length) if length else "", (length.low or 0.0) if length else 0.0),
        Cell("" if overhead is None else f"{overhead:+.0%}", overhead or 0.0),
        Cell(f"{r.median_ttft_ms:.0f}", r.median_ttft_ms),
        Cell(f"{r.mean_tpot_ms:.1f}", r.mean_tpot_ms),
        Cell(same, r.identical or 0),
    ]


def rows_grid(title: str, rows: Sequence[Row], note: str = "") -> Grid:
    """Rows as a sortable table."""
    return Grid(title, ["way", *COLUMNS[1:]], [_cells(r) for r in rows], note)


def speed_bars(title: str, rows: Sequence[Row]) -> Bars:
    """Speedups as bars."""
    made = [
        Bar(r.name, r.speedup.value, number(r.speedup), r.speedup.low, r.speedup.high, bounds(r.speedup), "c" if r.impossible else "a")
        for r in rows
    ]  # fmt: skip
    return Bars(title, made, "Tokens per second over those of plain decoding, same questions, interleaved.")


def time_bars(rows: Sequence[Row]) -> list[Part]:
    """Where a step's time goes, for each row that could be timed."""
    parts: list[Part] = []
    for r in rows:
        if r.step_ms:
            pieces = {n: getattr(r.step_ms, n) for n in ("draft", "verify", "scheduling", "other")}
            made = [Bar(n, ms, f"{ms:.2f}", hint=f"{ms / r.step_ms.total:.0%} of a step") for n, ms in pieces.items()]
            top = max(x.step_ms.total for x in rows if x.step_ms)
            parts.append(
                Bars(f"A decode step of {r.name}, milliseconds", made, f"{r.step_ms.total:.2f} in all.", top=top)
            )
    return parts


def compare_page(result: Compare) -> str:
    """A comparison as a page."""
    parts: list[Part] = []
    if result.partial:
        parts.append(Notes("Partial", [f"The run ended early: {result.partial}"], warn=True))
    if bad := impossible_rows(result.rows):
        parts.append(Notes("Impossible rows", bad, warn=True))
    contenders = [r for r in result.rows if r.speculative_config is not None and not r.impossible]
    best = max(contenders, key=lambda r: r.speedup.value or 0.0, default=None)
    if best is not None:
        cards = [Card("fastest", number(best.speedup) + "x", best.name)]
        plain = next(r for r in result.rows if r.speculative_config is None)
        cards.append(Card("plain decoding", number(plain.tokens_per_second, 1), "tokens per second"))
        if best.implied_overhead is not None:
            cards.append(Card("its overhead", f"{best.implied_overhead:+.0%}", "of a step, beyond a plain one"))
        parts.append(Cards(cards))
    parts.append(speed_bars("Speedup", result.rows))
    note = (
        "95%: intervals of speedup and acceptance length. Ttft: time to the first token. "
        "Overhead: tokens per step / speedup - 1. Same: answers equal to plain decoding's at temperature 0."
    )
    parts.append(rows_grid("Figures", result.rows, note))
    parts += time_bars(result.rows)
    if lines := remarks(result):
        parts.append(Notes("Remarks", lines))
    parts.append(environment_facts(result.environment))
    lead = f"{result.target}, {result.questions} questions, concurrency {result.rows[0].concurrency}."
    return render("Speculative decoding against plain decoding", lead, parts)


def compare_plot(result: Compare, file: Path) -> None:
    """Speedup and acceptance length of each row."""
    figure, axes = new_figure(2, [0.9 + 0.36 * len(result.rows)] * 2)
    names = [r.name for r in result.rows]
    bars(axes[0], names, [[r.speedup for r in result.rows]], [BLUE], [""])
    axes[0].axvline(1, color="#57606a", linestyle="--", linewidth=1)
    axes[0].set(title="speedup over plain decoding")
    drafting = [r for r in result.rows if r.acceptance]
    lengths = [r.acceptance.acceptance_length for r in drafting if r.acceptance]
    bars(axes[1], [r.name for r in drafting], [lengths], [GREEN], [""])
    axes[1].set(title="acceptance length", xlim=(1, None))
    figure.suptitle(f"{result.target}, concurrency {result.rows[0].concurrency}", fontsize=11)
    save(figure, file)
