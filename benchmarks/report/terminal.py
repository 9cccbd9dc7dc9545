"""Results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from ..schema import AcceptanceResult, Figure, Group


def number(figure: Figure, digits: int = 2) -> str:
    """A figure as text; a dash where there is none."""
    return "-" if figure.value is None else f"{figure.value:.{digits}f}"


def bounds(figure: Figure, digits: int = 2) -> str:
    """Its interval as text; empty where there is none."""
    return "" if figure.low is None else f"{figure.low:.{digits}f} to {figure.high:.{digits}f}"


def with_bounds(figure: Figure, digits: int = 2) -> str:
    """A figure and its interval."""
    spread = bounds(figure, digits)
    return f"{number(figure, digits)} ({spread})" if spread else number(figure, digits)


def show_acceptance(console: Console, result: AcceptanceResult) -> None:
    """Print a result of `bench acceptance`."""
    found, work = result.eagle.acceptance, result.eagle.workload
    console.print(
        f"{work.method}, k = {work.num_speculative_tokens}, for {work.target}: {found.questions} questions, "
        f"{found.requests} answers, {result.total_output_tokens} tokens, T = {work.temperature:g}, "
        f"concurrency {work.concurrency}, {result.duration:.0f} s"
    )
    if result.eagle.partial:
        console.print(f"PARTIAL: {result.eagle.partial}", style="bold red")
    table = Table("", "value", "95% interval", title="acceptance", title_justify="left")
    rows = {
        "acceptance length (vLLM's)": found.acceptance_length,
        "acceptance rate (vLLM's)": found.acceptance_rate,
        "expected length from conditional rates": found.expected_length,
        "emitted per drafted step, after the stop": found.emitted_length,
        "tokens per step, plain steps included": found.tokens_per_step,
    }
    for name, figure in rows.items():
        table.add_row(name, number(figure, 3), bounds(figure, 3))
    console.print(table)
    if found.trimmed_tokens:
        console.print(
            f"vLLM counted {found.trimmed_tokens} tokens that a stop condition trimmed, "
            f"{found.trimmed_accepted_tokens} of them accepted drafts."
        )
    positions = Table("position", "accepted", "95% interval", "given all before", "95% interval")
    for i, (rate, given) in enumerate(zip(found.per_position, found.conditional, strict=True), 1):
        positions.add_row(str(i), number(rate, 3), bounds(rate, 3), number(given, 3), bounds(given, 3))
    console.print(positions)
    for title, groups in groups_of(result):
        console.print(_groups(title, groups))
    times = result.eagle.step_ms
    if times:
        console.print(
            f"a decode step takes {times.total:.2f} ms: drafting {times.draft:.2f}, verifying {times.verify:.2f}, "
            f"scheduling {times.scheduling:.2f}, other {times.other:.2f} (mean of {times.steps})"
        )
    console.print(
        f"{result.output_throughput:.1f} tokens/s, first token after {result.median_ttft_ms:.0f} ms, "
        f"{result.mean_tpot_ms:.1f} ms per token"
    )
    for note in result.eagle.notes:
        console.print(f"note: {note}")


def groups_of(result: AcceptanceResult) -> list[tuple[str, list[Group]]]:
    """The groups of a result that are worth a table: those with more than one row."""
    eagle = result.eagle
    all_groups = {
        "by category": eagle.by_category,
        "by prompt length (tokens)": eagle.by_prompt_length,
        "by output position (tokens)": eagle.by_output_position,
    }
    return [(title, groups) for title, groups in all_groups.items() if len(groups) > 1]


def _groups(title: str, groups: Iterable[Group]) -> Table:
    table = Table(title.removeprefix("by "), "questions", "drafts", "acceptance length", "95% interval")
    for group in groups:
        figures = group.acceptance
        length = figures.acceptance_length
        table.add_row(group.name, str(figures.questions), str(figures.num_drafts), number(length), bounds(length))
    return table
