"""A few steps' draft trees as a picture, with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError
from ..trace import Trace
from .page import Branch, percent
from .plots import BLUE, GREEN, INK, ORANGE, new_figure, save
from .step_tree import numbered_tree

#: Steps that are drawn where none are asked for.
STEPS = 4
#: Inches of a column and of a row, and characters that fit into a node.
COLUMN, ROW, CHARACTERS = 1.25, 0.52, 13
SOFT, PALE = "#9aa5b4", "#f5f7fa"
#: Fill and edge of a node by its tone.
COLOURS = {"accepted": ("#d9f2e6", GREEN), "corrected": ("#fde3cd", ORANGE), "bonus": ("#dbe7fb", BLUE)}


class Placed(NamedTuple):
    """A branch and where it stands: its column is its depth."""

    branch: Branch
    column: int
    row: int
    #: Row of what it continues; None: the root.
    above: int | None


def trees_plot(result: Trace, file: Path, steps: Sequence[int] | None = None) -> None:
    """Draw the trees of `steps`, by default of a few that are spread evenly over the answer.

    Raises:
        UsageError: a step that the answer does not have.
    """
    chosen = list(steps) if steps else spread([i for i, step in enumerate(result.steps) if step.drafts], STEPS)
    if missing := [i for i in chosen if i >= len(result.steps)]:
        raise UsageError(f"--step {missing[0]}", f"Steps 0 to {len(result.steps) - 1} were expected")
    if not chosen:
        raise UsageError("--plot of an answer without drafts", "There is no tree to draw", "Ask for a longer answer")
    trees = [placed(numbered_tree(result, i)) for i in chosen]
    rows = [1 + max(p.row for p in tree) for tree in trees]
    columns = 1 + max(p.column for tree in trees for p in tree)
    figure, axes = new_figure(len(trees), [0.45 + ROW * n for n in rows])
    figure.set_figwidth(max(6.5, 0.3 + COLUMN * columns))
    for axis, number, tree, height in zip(axes, chosen, trees, rows, strict=True):
        accepted, drafted = (sum(d.accepted for d in result.steps[number].drafts), len(result.steps[number].drafts))
        axis.set_title(f"step {number}: {drafted} drafted, {accepted} accepted", loc="left")
        axis.set(xlim=(-0.5, columns - 0.5), ylim=(height - 0.4, -0.6))
        axis.set_axis_off()
        for each in tree:
            _draw(axis, each)
    length = "none" if result.acceptance_length is None else f"{result.acceptance_length:.2f}"
    words = f"acceptance length {length}; in each node the head's probability (blue) and the target's (green)"
    figure.suptitle(words, fontsize=9)
    with warnings.catch_warnings():
        # A token that matplotlib's font has no sign for is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        save(figure, file)


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of `numbers`, the first and the last among them, evenly apart."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]


def placed(root: Branch) -> list[Placed]:
    """A tree's nodes, each in the row of its parent or in the first free one below that."""
    found: list[Placed] = []

    def place(branch: Branch, column: int, row: int, above: int | None) -> int:
        found.append(Placed(branch, column, row, above))
        free = row
        for child in branch.below:
            free = place(child, column + 1, free, row)
        return max(free, row + 1)

    place(root, 0, 0, None)
    return found


def _draw(axis: Any, node: Placed) -> None:
    from matplotlib.patches import FancyBboxPatch

    branch, x, y = node.branch, node.column, node.row
    fill, edge = COLOURS.get(branch.tone, (PALE, SOFT))
    if node.above is not None:
        colour, width, order = (INK, 2.4, 2) if branch.on_path else (SOFT, 1.0, 1)
        axis.plot(
            [x - 0.62, x - 0.53, x - 0.53, x - 0.45], [node.above, node.above, y, y],
            color=colour, linewidth=width, zorder=order, solid_capstyle="butt",
        )  # fmt: skip
    axis.add_patch(
        FancyBboxPatch(
            (x - 0.42, y - 0.36), 0.84, 0.72, boxstyle="round,pad=0.02", mutation_aspect=COLUMN / ROW, zorder=3,
            facecolor=fill, edgecolor=edge, linewidth=1.6 if branch.on_path else 0.8,
            linestyle="--" if branch.tone == "trimmed" else "-",
        )
    )  # fmt: skip
    text = branch.text if len(branch.text) <= CHARACTERS else branch.text[: CHARACTERS - 1] + "…"
    odds = [(BLUE, branch.draft, -0.2), (GREEN, branch.target, 0.2)]
    shown = any(p is not None for _, p, _ in odds)
    # What looks like mathematics is text.
    axis.text(x, y - (0.13 if shown else 0), text, ha="center", va="center", fontsize=8.5, parse_math=False, zorder=4)
    for colour, p, offset in odds:
        if p is not None:
            axis.text(x + offset, y + 0.2, percent(p), ha="center", va="center", fontsize=7, color=colour, zorder=4)
