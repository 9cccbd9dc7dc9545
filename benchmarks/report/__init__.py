"""Results as terminal tables, plots, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..schema import AcceptanceResult
    from ..speed_schema import Compare, Sweep
    from ..trace import Trace


def write_acceptance(result: AcceptanceResult, html: Path | None, plot: Path | None) -> None:
    """Write the page and the picture that were asked for."""
    from .acceptance_page import acceptance_page
    from .plots import acceptance_plot

    if html is not None:
        html.write_text(acceptance_page(result))
    if plot is not None:
        acceptance_plot(result, plot)


def write_compare(result: Compare, html: Path | None, plot: Path | None) -> None:
    """Write the page and the picture that were asked for."""
    from .speed_tables import compare_page, compare_plot

    if html is not None:
        html.write_text(compare_page(result))
    if plot is not None:
        compare_plot(result, plot)


def write_sweep(result: Sweep, html: Path | None, plot: Path | None) -> None:
    """Write the page and the picture that were asked for."""
    from .sweep_tables import sweep_page, sweep_plot

    if html is not None:
        html.write_text(sweep_page(result))
    if plot is not None:
        sweep_plot(result, plot)


def write_trace(result: Trace, html: Path | None, plot: Path | None, steps: Sequence[int] | None) -> None:
    """Write the page and the picture of `steps` that were asked for.

    Raises:
        UsageError: a step that the answer does not have.
    """
    from .trace_page import trace_page
    from .tree_plot import trees_plot

    if html is not None:
        html.write_text(trace_page(result))
    if plot is not None:
        trees_plot(result, plot, steps)
