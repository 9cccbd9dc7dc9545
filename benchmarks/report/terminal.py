"""A report in a terminal: its verdict, tables and notes."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..schema import Figure
from .page import Grid, Notes, Report


def number(figure: Figure | None, digits: int = 2) -> str:
    """A figure as text; a dash where there is none."""
    return "-" if figure is None or figure.value is None else f"{figure.value:.{digits}f}"


def bounds(figure: Figure | None, digits: int = 2) -> str:
    """Its interval as text; empty where there is none."""
    return "" if figure is None or figure.low is None else f"{figure.low:.{digits}f} to {figure.high:.{digits}f}"


def with_bounds(figure: Figure | None, digits: int = 2) -> str:
    """A figure and its interval."""
    spread = bounds(figure, digits)
    return f"{number(figure, digits)} ({spread})" if spread else number(figure, digits)


def terminal() -> Any:
    """A console of rich's, wide enough for our tables where it is no terminal."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)


def show(console: Console, report: Report) -> None:
    """Print a report."""
    console.print(report.verdict, style="bold")
    console.print(report.lead, style="dim")
    for part in report.parts:
        if isinstance(part, Grid):
            table = Table(*part.columns, title=part.title, title_justify="left")
            for row in part.rows:
                flagged = any(cell.flag for cell in row)
                table.add_row(*(cell.text for cell in row), style="red" if flagged else None)
            console.print(table)
        elif isinstance(part, Notes):
            for line in part.notes:
                console.print(f"{part.title}: {line}", style="red" if part.warn else None)
