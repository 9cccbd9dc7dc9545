"""Pictures with matplotlib, of the bars and lines of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UsageError
from .page import Bars, Lines, Report

FORMATS = (".png", ".svg", ".pdf")
BLUE, GREEN, ORANGE, INK, GREY = "#2f6fdb", "#11805f", "#b3540b", "#1c2430", "#57606a"
#: Colours as the page has them: of bars by their tone, of lines by number.
TONES = {"length": BLUE, "speed": GREEN, "time": GREY, "flag": ORANGE}
LINES = (BLUE, "#8a3fb0", GREEN, "#a8326a", ORANGE, GREY)


def check_format(file: Path) -> None:
    """Refuse a picture that matplotlib cannot write, before anything is measured."""
    if file.suffix not in FORMATS:
        raise UsageError(f"--plot {file}", f"Expected a file name ending in {', '.join(FORMATS)}")


def draw(report: Report, file: Path) -> None:
    """The charts of a report that are meant for its picture, below each other."""
    parts = [part for part in report.parts if isinstance(part, Bars | Lines) and part.pictured]
    heights = [4.2 if isinstance(part, Lines) else 0.9 + 0.36 * len(part.bars) for part in parts]
    figure, axes = new_figure(len(parts), heights)
    figure.suptitle(report.verdict, fontsize=11, wrap=True)
    for axis, part in zip(axes, parts, strict=True):
        axis.set_title(part.title)
        if isinstance(part, Lines):
            _lines(axis, part)
        else:
            _bars(axis, part)
    save(figure, file)


def _lines(axis: Any, part: Lines) -> None:
    for line in part.lines:
        style = {"linestyle": "--", "marker": ""} if line.dashed else {"marker": "o"}
        axis.plot(*zip(*line.points, strict=True), color=LINES[line.tone % len(LINES)], label=line.name, **style)
    if part.level is not None:
        axis.axhline(part.level, color=GREY, linewidth=1)
    axis.set(xlabel=part.x, ylabel=part.y)
    axis.set_xticks(part.x_ticks)
    axis.legend(fontsize=8)


def _bars(axis: Any, part: Bars) -> None:
    """Horizontal, with whiskers and their figures, the first on top."""
    for y, bar in enumerate(part.bars):
        if bar.value is None:
            continue
        axis.barh(y, bar.value, 0.72, color=TONES[bar.tone])
        if bar.low is not None and bar.high is not None:
            axis.plot([bar.low, bar.high], [y, y], color=INK, linewidth=1.4, marker="|", markersize=6)
        end = max(bar.value, bar.high or 0)
        axis.annotate(bar.text, (end, y), (5, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axis.set_yticks(range(len(part.bars)), [bar.label for bar in part.bars])
    axis.invert_yaxis()
    axis.set_xlim(left=part.origin, right=part.top)
    if part.level is not None:
        axis.axvline(part.level, color=GREY, linestyle="--", linewidth=1)


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
