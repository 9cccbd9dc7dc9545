"""Pictures with matplotlib, of the same figures as the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..schema import AcceptanceResult, Figure, Group
from .terminal import groups_of

FORMATS = (".png", ".svg", ".pdf")
BLUE, GREEN, ORANGE, INK = "#2f6fdb", "#11805f", "#b3540b", "#1c2430"


def check_format(file: Path) -> None:
    """Refuse a picture that matplotlib cannot write, before anything is measured."""
    if file.suffix not in FORMATS:
        raise UsageError(f"--plot {file}", f"Expected a file name ending in {', '.join(FORMATS)}")


def acceptance_plot(result: AcceptanceResult, file: Path) -> None:
    """Rates by position, conditional rates, and each group's acceptance length."""
    found, work = result.eagle.acceptance, result.eagle.workload
    groups = groups_of(result)
    panels = 1 + len(groups)
    heights = [1.0 + 0.38 * len(found.per_position)] + [0.9 + 0.32 * len(g) for _, g in groups]
    figure, axes = new_figure(panels, heights)
    length = found.acceptance_length
    interval = f" ({length.low:.2f} to {length.high:.2f})" if length.low is not None else ""
    value = "none" if length.value is None else f"{length.value:.2f}{interval}"
    figure.suptitle(f"acceptance length {value}, k = {work.num_speculative_tokens}, {work.target}", fontsize=11)
    positions = [f"position {i}" for i in range(1, len(found.per_position) + 1)]
    bars(
        axes[0], positions, [found.per_position, found.conditional], [BLUE, GREEN], ["of all steps", "given all before"]
    )
    axes[0].set(xlim=(0, 1), title="accepted, by position")
    for axis, (title, members) in zip(axes[1:], groups, strict=True):
        _lengths(axis, members)
        axis.set(xlim=(1, work.num_speculative_tokens + 1), title=f"acceptance length {title}")
    save(figure, file)


def _lengths(axis: Any, groups: Sequence[Group]) -> None:
    bars(axis, [g.name for g in groups], [[g.acceptance.acceptance_length for g in groups]], [BLUE], [""])


def bars(
    axis: Any, names: Sequence[str], series: Sequence[Sequence[Figure]], colours: list[str], labels: list[str]
) -> None:
    """Horizontal bars with whiskers and their figures, the first on top."""
    height = 0.8 / len(series)
    for i, (figures, colour, label) in enumerate(zip(series, colours, labels, strict=True)):
        for row, figure in enumerate(figures):
            if figure.value is None:
                continue
            y = row + (i - (len(series) - 1) / 2) * height
            axis.barh(y, figure.value, 0.9 * height, color=colour, label=label if row == 0 else None)
            if figure.low is not None and figure.high is not None:
                axis.plot([figure.low, figure.high], [y, y], color=INK, linewidth=1.4, marker="|", markersize=6)
            end = max(figure.value, figure.high or 0)
            axis.annotate(
                f"{figure.value:.2f}", (end, y), (5, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    if any(labels):
        axis.legend(fontsize=8, loc="lower right")


def new_figure(panels: int, heights: list[float]) -> tuple[Any, list[Any]]:
    """Panels below each other, so many inches high."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        panels, 1, figsize=(8, sum(heights) + 0.6), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes[:, 0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_size(10)
        axis.tick_params(labelsize=9)
    return figure, list(axes[:, 0])


def save(figure: Any, file: Path) -> None:
    """Write and close."""
    import matplotlib.pyplot as plt

    figure.savefig(file, dpi=130)
    plt.close(figure)
