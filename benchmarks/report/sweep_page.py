"""A result of `bench sweep` as a report."""

from __future__ import annotations

from ..cost_model import chain, decode_speedup
from ..speed_schema import Advice, Row, Sweep
from ..statistics import expected_length
from .acceptance_page import environment_facts, partial
from .compare_page import impossible, length_bars, rows_grid, speed_bars, speed_words, step_bars
from .page import Card, Cards, Cell, Grid, Line, Lines, Notes, Part, Report


def sweep_report(result: Sweep) -> Report:
    """The report."""
    everything, sizes = [*result.rows, *result.trees], batches(result)
    parts: list[Part] = [*partial(result.partial), *impossible(everything), Cards(_cards(result))]
    parts.append(Notes("What to do", [line for a in result.advice for line in _advice(a)]))
    parts.append(Lines("Decode speedup by k", curves(result), "drafts per step (k)", "decode speedup", level=1.0))
    for batch in sizes:
        rows = rows_at(result, batch)
        if result.trees:
            drafting = [row for row in rows if row.speculative_config is not None]
            parts += [
                length_bars(f"Acceptance length by shape, concurrency {batch}", drafting),
                speed_bars(f"Speedup by shape, concurrency {batch}", drafting),
            ]
        parts.append(rows_grid(f"Measured at concurrency {batch}", rows))
    grids = (_model_grid(result), _held_out_grid(result), _synthetic_grid(result))
    parts += [grid for grid in grids if grid.rows]
    parts.append(Notes("Cost model", [cost_line(result)]))
    parts += step_bars([r for r in result.rows if r.concurrency == sizes[0]])
    parts += [Notes("Note", result.notes)] if result.notes else []
    parts.append(environment_facts(result.environment))
    lead = f"{result.target}: {result.questions} questions, {result.max_tokens} tokens each, T = 0"
    return Report("How many drafts, at which batch size", _advice(result.advice[0])[0], lead, parts)


def batches(result: Sweep) -> list[int]:
    """The batch sizes that were measured."""
    return sorted({r.concurrency for r in result.rows})


def rows_at(result: Sweep, batch: int) -> list[Row]:
    """Chains and trees of a batch size."""
    return [r for r in [*result.rows, *result.trees] if r.concurrency == batch]


def _cards(result: Sweep) -> list[Card]:
    best = max(result.advice, key=lambda a: a.measured.value or 0.0)
    cards = [
        Card("fastest measured", f"{best.measured.value or 0.0:.2f}x", f"{best.best}, concurrency {best.concurrency}")
    ]
    worst = max((abs(p.error) for p in result.held_out), default=None)
    if worst is not None:
        cards.append(Card("held-out k", f"{worst:.1%}", "largest error of the cost model"))
    perfect = max(a.speedup_if_perfect for a in result.advice)
    return [*cards, Card("perfect head", f"{perfect:.2f}x", "by the cost model")]


def _advice(a: Advice) -> list[str]:
    """What to do at a batch size, in a sentence, and the command."""
    said = f"At concurrency {a.concurrency}: {a.best}, {speed_words(a.measured)}."
    if a.command is None:
        return [
            f"At concurrency {a.concurrency}: do not speculate with this head; {a.best}, {speed_words(a.measured)}."
        ]
    return [said, a.command]


def cost_line(result: Sweep) -> str:
    """The fitted costs in words."""
    c = result.cost
    return (
        f"A step of B requests with k drafts takes the target {c.fixed:.1f} + {c.per_request:.2f} B + "
        f"{c.per_row:.2f} B (k + 1) + {c.rejecting:.1f} ms and the drafter {c.drafting:.1f} + k ({c.per_draft:.2f} + "
        f"{c.per_draft_request:.2f} B) ms; without drafts the drafter and the {c.rejecting:.1f} fall away. "
        f"The fit is off by {c.rms_error:.1%} (rms)."
    )


def _model_grid(result: Sweep) -> Grid:
    columns = ["concurrency", "best k", "decode speedup", "pays above length", "if every draft were right"]
    rows = [
        [
            Cell(str(a.concurrency), a.concurrency),
            Cell(str(a.best_k) if a.best_k else "none", a.best_k),
            *(Cell(f"{v:.2f}", v) for v in (a.speedup, a.break_even_length, a.speedup_if_perfect)),
        ]
        for a in result.advice
    ]
    return Grid("What the cost model says of chains", columns, rows)


def _held_out_grid(result: Sweep) -> Grid:
    columns = ["k", "concurrency", "predicted", "measured", "error"]
    rows = [
        [
            *(Cell(str(n), n) for n in (p.num_speculative_tokens, p.concurrency)),
            *(Cell(f"{v:.3f}", v) for v in (p.predicted, p.measured)),
            Cell(f"{p.error:+.1%}", p.error, flag=abs(p.error) > 0.1),
        ]
        for p in result.held_out
    ]
    return Grid("Each k predicted from the others", columns, rows, "Decode speedup; the k was left out of the fit.")


def _synthetic_grid(result: Sweep) -> Grid:
    columns = ["acceptance length", "k", "concurrency", "predicted", "measured", "error"]
    rows = [
        [
            Cell(f"{s.acceptance_length:g}", s.acceptance_length),
            *(Cell(str(n), n) for n in (s.num_speculative_tokens, s.concurrency)),
            *(Cell("-" if v is None else f"{v:.3f}", v or 0.0) for v in (s.predicted, s.measured)),
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
        # Every answer is of the same length, so the ratio of the means is that of the speeds.
        measured = [(float(r.num_speculative_tokens), rows[0].mean_tpot_ms / r.mean_tpot_ms) for r in rows]
        modelled = [(0.0, 1.0)]
        for k in range(1, len(result.conditional) + 1):
            length = expected_length(result.conditional, k)
            modelled.append((float(k), decode_speedup(result.cost, chain(k), batch, length)))
        lines.append(Line(f"measured, concurrency {batch}", measured, tone % 6))
        lines.append(Line(f"model, concurrency {batch}", modelled, tone % 6, dashed=True))
    return lines
