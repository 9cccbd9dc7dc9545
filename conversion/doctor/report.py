"""A diagnosis on the terminal and as a picture."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ...errors import UsageError
from .diagnosis import Diagnosis
from .flags import as_flags
from .search import Candidate

_SHOWN = 16
_PLOTTED = 12


def show(found: Diagnosis, console: Console) -> None:
    """Findings, the ranked table, the verdict, and what to do."""
    for finding in found.findings:
        console.print(f"  - {finding.text}" + ("" if finding.kind == "note" else f"  ({finding.kind})"))
    if found.outcome.refusal is not None:
        console.print(f"  - convert refuses it as it is: {found.outcome.refusal}")
    rows = _rows(found)
    depth = max(len(c.measured().per_depth) for c in rows)
    table = Table("reading", *(f"depth {i + 1}" for i in range(depth)), "accepted", "positions", "options",
                  title=f"agreement with {found.target.name}'s own greedy text", title_justify="left")  # fmt: skip
    for c in rows:
        shares = [f"{share:.1%}" for share in c.measured().per_depth] + [""] * (depth - len(c.measured().per_depth))
        mark = " (now)" if c is found.outcome.current else ""
        style = "bold" if c is found.outcome.best else None
        table.add_row(c.says + mark, *shares, _against(c, found), str(len(c.measured().hits)), as_flags(c.options), style=style)  # fmt: skip
    Console(width=max(console.width, 150), highlight=False, markup=False).print(table)
    console.print("accepted: drafts of a chain of four, against how it is read now, at the same positions.")
    left = sum(c.agreement is not None for c in found.outcome.tried) - len(rows)
    if left > 0:
        console.print(f"and {left} more that agree less.")
    console.print(f"\nverdict: {found.verdict}")
    if found.threads:
        console.print(f"known as {found.threads}")
    if found.command and not found.sound:
        console.print("\nConvert it so:")
        print(found.command)


def check_plot(plot: Path | None) -> None:
    """Refuse a plot that cannot be drawn before anything is measured."""
    if plot is None:
        return
    if plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot is {plot}", "A name that ends in .png or .svg was expected", "Correct it")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", "", "pip install matplotlib")
    if not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot is {plot}, whose folder does not exist", "", "Make it, or choose another")


def draw(found: Diagnosis, plot: Path) -> None:
    """Agreement by depth, one line for each of the best readings, at the positions that all of them were tried on."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    shown = _rows(found)[:_PLOTTED]
    positions = min(len(c.measured().hits) for c in shown)
    for c in reversed(shown):
        shares, special = c.measured().first(positions).per_depth, c in (found.outcome.best, found.outcome.current)
        label = c.says + (" (now)" if c is found.outcome.current else "")
        line: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if special else {"linewidth": 1, "alpha": 0.6}
        if c is found.outcome.best:
            line["color"] = "tab:green"
        elif c is found.outcome.current:
            line["color"] = "tab:red"
        axes.plot(range(1, len(shares) + 1), shares, marker="o", label=label, **line)
    axes.axhline(found.floor, color="grey", linestyle=":", linewidth=1)
    axes.annotate("always the most frequent token", (1, found.floor), fontsize=8, color="grey", va="bottom")
    axes.set_xticks(range(1, 5))
    axes.set_ylim(0, None)
    axes.set_xlabel("depth of the chain")
    axes.set_ylabel(f"drafts that are the target's own token, at {positions} positions")
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes.set_title(textwrap.fill(found.verdict, 100), fontsize=9, loc="left")
    axes.legend(*(list(reversed(part)) for part in axes.get_legend_handles_labels()), fontsize=8,
                loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # fmt: skip
    figure.savefig(plot, dpi=150)
    pyplot.close(figure)


def _rows(found: Diagnosis) -> list[Candidate]:
    """The best of what was measured, and the current reading wherever it stands."""
    rows = found.rows
    shown = rows[:_SHOWN]
    current = found.outcome.current
    return shown if current is None or current in shown else [*shown, current]


def _against(c: Candidate, found: Diagnosis) -> str:
    """Drafts of a chain accepted more than with the current reading, at the same positions."""
    current = found.outcome.current or found.outcome.best
    if c is current or c.agreement is None:
        return ""
    ours, theirs = c.measured(), current.measured().first(len(c.measured().hits))
    if len(theirs.hits) != len(ours.hits):
        return ""
    gain = ours.total - theirs.total
    errors = abs(ours.better_than(theirs))
    return f"{gain:+.2f} ± {abs(gain) / errors:.2f}" if errors else "+0.00"
