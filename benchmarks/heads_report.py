"""The comparison of heads as a table and a picture."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from .heads_store import Heads, Length, Speed
from .report.terminal import number
from .schema import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(result: Heads) -> str:
    """Acceptance length by k, and what it buys, as markdown; a row for each head and temperature."""
    ks = sorted({row.num_speculative_tokens for row in result.lengths})
    middle = 3 if 3 in ks else ks[len(ks) // 2]
    names = ["head", "parameters", "T", *(f"k = {k}" for k in ks), f"drafting, ms a step, k = {middle}"]
    lines = ["| " + " | ".join([*names, f"speed, k = {middle}", "best"]) + " |", "|" + "---|" * (len(names) + 2)]
    for (head, heat), by_k in lengths(result).items():
        size = f"{next(iter(by_k.values())).parameters / 1e6:.1f} M"
        cells = [f"`{head}`", size, f"{heat:g}"]
        cells += [within(by_k[k].acceptance_length) if k in by_k else "" for k in ks]
        timed = {} if heat else speeds(result).get(head, {})
        drafting = timed[middle].draft_ms if middle in timed else None
        cells += [
            "" if drafting is None else f"{drafting:.1f}",
            number(timed[middle].speedup) if middle in timed else "",
        ]
        best = max(timed, key=lambda k: timed[k].speedup.value or 0, default=0)
        cells.append(f"{number(timed[best].speedup)}, k = {best}" if best else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def within(figure: Figure) -> str:
    """A figure and half the width of its interval."""
    if figure.value is None or figure.low is None or figure.high is None:
        return number(figure)
    return f"{figure.value:.2f} ±{(figure.high - figure.low) / 2:.2f}"


def lengths(result: Heads) -> dict[tuple[str, float], dict[int, Length]]:
    """By head and temperature, as measured first, then by k."""
    heads = list(dict.fromkeys(row.head for row in result.lengths))
    groups: dict[tuple[str, float], dict[int, Length]] = {}
    for row in sorted(result.lengths, key=lambda r: (heads.index(r.head), r.temperature, r.num_speculative_tokens)):
        groups.setdefault((row.head, row.temperature), {})[row.num_speculative_tokens] = row
    return groups


def speeds(result: Heads) -> dict[str, dict[int, Speed]]:
    """By head, then by k."""
    groups: dict[str, dict[int, Speed]] = {}
    for row in sorted(result.speeds, key=lambda r: r.num_speculative_tokens):
        groups.setdefault(row.head, {})[row.num_speculative_tokens] = row
    return groups


def draw(result: Heads, picture: Path) -> None:
    """Acceptance length over k, dashed where answers are sampled, and speed against plain decoding."""
    from .report.plots import new_figure, save

    timed = speeds(result)
    figure, axes = new_figure(1 + bool(timed), [3.4] * (1 + bool(timed)))
    heads = list(dict.fromkeys(row.head for row in result.lengths))
    for (head, heat), by_k in lengths(result).items():
        _line(axes[0], {k: row.acceptance_length for k, row in by_k.items()}, heads.index(head), heat, head)
    axes[0].set(title="acceptance length; dashed: sampled at a temperature", xlabel="drafts per step, k")
    axes[0].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    for head, by_speed in timed.items():
        _line(axes[1], {k: row.speedup for k, row in by_speed.items()}, heads.index(head), 0.0, head)
    if timed:
        axes[1].set(title="tokens per second over plain decoding's, one request at a time", xlabel="drafts per step, k")
        axes[1].axhline(1, color="grey", linewidth=0.8)
    save(figure, picture)


def _line(axis: Axes, figures: dict[int, Figure], colour: int, heat: float, label: str) -> None:
    axis.plot(
        list(figures),
        [nan if figure.value is None else figure.value for figure in figures.values()],
        linestyle="--" if heat else "-",
        marker="o",
        markersize=3,
        color=f"C{colour}",
        label=None if heat else label,
    )
