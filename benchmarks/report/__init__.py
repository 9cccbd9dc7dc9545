"""Results as terminal tables, plots, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..schema import AcceptanceResult
    from ..speed import Compare, Sweep


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
