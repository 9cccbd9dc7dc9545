"""Results of `bench sweep` in a terminal, as a page and as a plot."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..cost_model import chain, decode_speedup
from ..schema import Figure
from ..speed_schema import Advice, Row, Sweep
from ..statistics import expected_length
from .acceptance_page import environment_facts
from .page import Bar, Bars, Card, Cards, Cell, Grid, Line, Lines, Notes, Part, render
from .plots import BLUE, GREEN, bars, new_figure, save
from .speed_tables import impossible_rows, rows_grid, rows_table, time_bars


def show_sweep(console: Console, result: Sweep) -> None:
    """Print a result of `bench sweep`."""
    console.print(f"{result.target}: {result.questions} questions, {result.max_tokens} tokens each, T = 0")
    if result.partial:
        console.print(f"PARTIAL: {result.partial}", style="bold red")
    for batch in batches(result):
        console.print(f"concurrency {batch}")
        console.print(rows_table(rows_at(result, batch)))
    for grid in (advice_grid(result), held_out_grid(result), synthetic_grid(result)):
        if grid.rows:
            table = Table(*grid.columns, title=grid.title, title_justify="left")
            for row in grid.rows:
                table.add_row(*(cell.text for cell in row))
            console.print(table)
    flagged = [f"IMPOSSIBLE: {line}" for line in impossible_rows([*result.rows, *result.trees])]
    for line in [*flagged, cost_line(result), *verdicts(result), *result.notes]:
        console.print(line)


def batches(result: Sweep) -> list[int]:
    """The batch sizes that were measured."""
    return sorted({r.concurrency for r in result.rows})


def rows_at(result: Sweep, batch: int) -> list[Row]:
    """Chains and trees of a batch size."""
    return [r for r in [*result.rows, *result.trees] if r.concurrency == batch]


def cost_line(result: Sweep) -> str:
    """The fitted costs in words."""
    c = result.cost
    return (
        f"A step of B requests with k drafts takes the target {c.fixed:.1f} + {c.per_request:.2f} B + "
        f"{c.per_row:.2f} B (k + 1) + {c.rejecting:.1f} ms and the drafter {c.drafting:.1f} + k ({c.per_draft:.2f} + "
        f"{c.per_draft_request:.2f} B) ms; without drafts the drafter and the {c.rejecting:.1f} fall away. "
        f"The fit is off by {c.rms_error:.1%} (rms)."
    )


def verdicts(result: Sweep) -> list[str]:
    """What to do, and where the time goes, in a sentence for each batch size."""
    return [_verdict(result, a) for a in result.advice]


def _verdict(result: Sweep, a: Advice) -> str:
    k = a.best_k or 1
    length = expected_length(result.conditional, k)
    if a.best_k:
        return (
            f"At concurrency {a.concurrency}: k = {k}, decode speedup {a.speedup:.2f} at length {length:.2f}; "
            f"it pays above a length of {a.break_even_length:.2f}."
        )
    return (
        f"At concurrency {a.concurrency}: do not speculate with this head. Even k = 1 needs a length of "
        f"{a.break_even_length:.2f} to pay, and it reaches {length:.2f}."
    )


def advice_grid(result: Sweep) -> Grid:
    """Advice by batch size."""
    columns = ["concurrency", "best k", "decode speedup", "pays above length", "if every draft were right"]
    rows = [
        [
            Cell(str(a.concurrency), a.concurrency),
            Cell(str(a.best_k) if a.best_k else "none", a.best_k),
            *(Cell(f"{v:.2f}", v) for v in (a.speedup, a.break_even_length, a.speedup_if_perfect)),
        ]
        for a in result.advice
    ]
    return Grid("What to set", columns, rows)


def held_out_grid(result: Sweep) -> Grid:
    """Predictions for each k from the others."""
    columns = ["k", "concurrency", "predicted", "measured", "error"]
    rows = [
        [
            Cell(str(p.num_speculative_tokens), p.num_speculative_tokens),
            Cell(str(p.concurrency), p.concurrency),
            Cell(f"{p.predicted:.3f}", p.predicted),
            Cell(f"{p.measured:.3f}", p.measured),
            Cell(f"{p.error:+.1%}", p.error, flag=abs(p.error) > 0.1),
        ]
        for p in result.held_out
    ]
    return Grid("Each k predicted from the others", columns, rows, "Decode speedup; the k was left out of the fit.")


def synthetic_grid(result: Sweep) -> Grid:
    """What a better head would buy."""
    columns = ["acceptance length", "k", "concurrency", "predicted", "measured", "error"]
    rows = [
        [
            Cell(f"{s.acceptance_length:g}", s.acceptance_length),
            Cell(str(s.num_speculative_tokens), s.num_speculative_tokens),
            Cell(str(s.concurrency), s.concurrency),
            Cell(f"{s.predicted:.3f}", s.predicted),
            Cell("-" if s.measured is None else f"{s.measured:.3f}", s.measured or 0.0),
            Cell("-" if s.error is None else f"{s.error:+.1%}", s.error or 0.0),
        ]
        for s in result.synthetic
    ]
    return Grid("What a better head would buy", columns, rows, "Measured with vLLM's synthetic acceptance.")


def curves(result: Sweep) -> list[Line]:
    """Decode speedup by k: measured, and by the model."""
    lines = []
    for tone, batch in enumerate(batches(result)):
        rows = sorted((r for r in result.rows if r.concurrency == batch), key=lambda r: r.num_speculative_tokens)
        measured = [(float(r.num_speculative_tokens), decode_speedup_of(result, r)) for r in rows]
        lines.append(Line(f"measured, concurrency {batch}", measured, tone % 6))
        modelled = [(0.0, 1.0)]
        for k in range(1, len(result.conditional) + 1):
            length = expected_length(result.conditional, k)
            modelled.append((float(k), decode_speedup(result.cost, chain(k), batch, length)))
        lines.append(Line(f"model, concurrency {batch}", modelled, tone % 6, dashed=True))
    return lines


def decode_speedup_of(result: Sweep, row: Row) -> float:
    """As measured: every answer is of the same length, so the ratio of the means is that of the speeds."""
    plain = next(r for r in result.rows if r.concurrency == row.concurrency and not r.num_speculative_tokens)
    return plain.mean_tpot_ms / row.mean_tpot_ms


def shapes(result: Sweep, batch: int) -> list[tuple[Row, Figure, float]]:
    """Each shape drafted at a batch size, chains first: its row, acceptance length and decode speedup."""
    drafted = [(r, r.acceptance) for r in rows_at(result, batch)]
    return [(r, a.acceptance_length, decode_speedup_of(result, r)) for r, a in drafted if a is not None]


def shape_bars(result: Sweep, batch: int) -> list[Bars]:
    """Acceptance length and decode speedup of each shape at a batch size."""
    found = [
        (f"chain, {row.name}" if row in result.rows else row.name, length, speed)
        for row, length, speed in shapes(result, batch)
    ]
    lengths = [
        Bar(name, f.value, "none" if f.value is None else f"{f.value:.2f}", f.low, f.high) for name, f, _ in found
    ]
    speeds = [Bar(name, speed, f"{speed:.2f}", tone="b") for name, _, speed in found]
    return [
        Bars(f"Acceptance length by shape, concurrency {batch}", lengths, "Drawn from 1: the target's own token.", 1.0),
        Bars(f"Decode speedup by shape, concurrency {batch}", speeds, "Over plain decoding."),
    ]


def sweep_page(result: Sweep) -> str:
    """A sweep as a page."""
    parts: list[Part] = []
    if result.partial:
        parts.append(Notes("Partial", [f"The run ended early: {result.partial}"], warn=True))
    if bad := impossible_rows([*result.rows, *result.trees]):
        parts.append(Notes("Impossible rows", bad, warn=True))
    best = max(result.advice, key=lambda a: a.speedup)
    cards = [
        Card(
            "best decode speedup",
            f"{best.speedup:.2f}x",
            f"concurrency {best.concurrency}, k = {best.best_k or 'none'}",
        )
    ]
    worst = max((abs(p.error) for p in result.held_out), default=None)
    if worst is not None:
        cards.append(Card("held-out k", f"{worst:.1%}", "largest error of the cost model"))
    cards.append(Card("perfect head", f"{max(a.speedup_if_perfect for a in result.advice):.2f}x", "by the cost model"))
    parts.append(Cards(cards))
    parts.append(Notes("What to do", [*verdicts(result), cost_line(result)]))
    parts.append(Lines("Decode speedup by k", curves(result), "drafts per step (k)", "decode speedup", level=1.0))
    if result.trees:
        parts += [bars for batch in batches(result) for bars in shape_bars(result, batch)]
    parts += [grid for grid in (advice_grid(result), held_out_grid(result), synthetic_grid(result)) if grid.rows]
    for batch in batches(result):
        rows = rows_at(result, batch)
        parts.append(rows_grid(f"Measured at concurrency {batch}", rows))
    parts += time_bars([r for r in result.rows if r.concurrency == batches(result)[0]])
    if result.notes:
        parts.append(Notes("Notes", result.notes))
    parts.append(environment_facts(result.environment))
    return render("How many drafts, at which batch size", f"{result.target}, {result.questions} questions.", parts)


def sweep_plot(result: Sweep, file: Path) -> None:
    """Decode speedup by k, measured and by the model; with trees, acceptance length and speedup by shape too."""
    batch = batches(result)[0]
    heights = [0.9 + 0.3 * len(shapes(result, batch))] * 2 if result.trees else []
    figure, (axis, *others) = new_figure(1 + len(heights), [4.2, *heights])
    colours = ("#2f6fdb", "#b3540b", "#11805f", "#8a3fb0", "#a8326a")
    for line in curves(result):
        xs, ys = zip(*line.points, strict=True)
        style = {"linestyle": "--", "marker": ""} if line.dashed else {"marker": "o"}
        axis.plot(xs, ys, color=colours[line.tone % len(colours)], label=line.name, **style)
    axis.axhline(1, color="#57606a", linewidth=1)
    axis.set(xlabel="drafts per step (k)", ylabel="decode speedup", title=result.target)
    axis.set_xticks(range(len(result.conditional) + 1))
    axis.legend(fontsize=8)
    for below, drawn in zip(others, shape_bars(result, batch), strict=False):
        figures = [Figure(value=bar.value, low=bar.low, high=bar.high) for bar in drawn.bars]
        bars(below, [bar.label for bar in drawn.bars], [figures], [BLUE if drawn.origin else GREEN], [""])
        below.set(title=drawn.title)
        below.set_xlim(left=drawn.origin)
    save(figure, file)
