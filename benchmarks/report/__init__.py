"""Results as tables in a terminal, pictures, and a page: all made from one list of parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..schema import AcceptanceResult
    from ..speed_schema import Compare, Sweep
    from ..trace import Trace
    from .page import Report


def report_of(result: AcceptanceResult | Compare | Sweep) -> Report:
    """What there is to say of a result."""
    from ..schema import AcceptanceResult
    from ..speed_schema import Compare
    from .acceptance_page import acceptance_report
    from .compare_page import compare_report
    from .sweep_page import sweep_report

    if isinstance(result, AcceptanceResult):
        return acceptance_report(result)
    return compare_report(result) if isinstance(result, Compare) else sweep_report(result)


def write_report(
    result: AcceptanceResult | Compare | Sweep, html: Path | None, plot: Path | None, console: Any = None
) -> None:
    """Write the page and the picture that were asked for, and print the tables on `console` if given."""
    from .page import render
    from .plots import draw
    from .terminal import show

    report = report_of(result)
    if console is not None:
        show(console, report)
    if html is not None:
        html.write_text(render(report))
    if plot is not None:
        draw(report, plot)


def write_trace(result: Trace, html: Path | None, plot: Path | None, steps: Sequence[int] | None) -> None:
    """Write the page and the picture of `steps` that were asked for.

    Raises:
        UsageError: a step that the answer does not have.
    """
    from .page import render
    from .trace_page import trace_report
    from .tree_plot import trees_plot

    if html is not None:
        html.write_text(render(trace_report(result)))
    if plot is not None:
        trees_plot(result, plot, steps)
