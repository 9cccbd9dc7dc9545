"""Results as Markdown tables, in the shapes that README and docs have them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .report.terminal import bounds, number
from .schema import AcceptanceResult, Environment, Figure, read_result
from .speed import Compare, Row, Sweep

TITLES = {
    "demo": "Demo (README, Measured)",
    "acceptance": "Acceptance (README, docs/benchmarks.md)",
    "compare": "Against plain decoding (README, docs/benchmarks.md)",
    "sweep": "Every k at every batch (docs/benchmarks.md)",
    "trees": "Trees and adaptive length, speed (docs/trees.md)",
    "tree_shapes": "Trees of many shapes (docs/trees.md)",
    "tree_overhead": "A tree that is a chain against the stock chain (docs/trees.md)",
    "tree_lengths": "Trees against the chain of their depth, T = 0 (docs/trees.md)",
    "tree_lengths_sampled": "Trees against the chain of their depth, T = 1 (docs/trees.md)",
    "worthless_1": "A head of random weights, one request at a time (docs/trees.md)",
    "worthless_8": "A head of random weights, 8 at a time (docs/trees.md)",
    "worthless_32": "A head of random weights, 32 at a time (docs/trees.md)",
    "draft_step": "A draft step, and the plugin unused (README)",
    "convert_speed": "Converting (README, docs/conversion.md)",
}


def tables(folder: Path, names: Sequence[str], environment: Environment, earlier: str = "") -> str:
    """The tables of the results `names` in a folder, measured in `environment`, and those of other results as they
    stand in `earlier`, the text that an earlier run wrote."""
    where = ", ".join(f"{name} {value}" for name, value in {**environment.hardware, **environment.versions}.items())
    sections = dict(re.findall(r"^## (.+)\n\n((?:(?!## ).*\n)+)", earlier, re.M))
    for name in names:
        found = _table(name, folder / f"{name}.json")
        sections[TITLES[name]] = f"Measured {environment.date} on {where}.\n\n{found}\n"
    kept = [title for title in TITLES.values() if title in sections]
    return "\n".join(f"## {title}\n\n{sections[title].rstrip()}\n" for title in kept)


def _table(name: str, file: Path) -> str:
    if name == "acceptance":
        return _acceptance(read_result(file, AcceptanceResult))
    if name in ("sweep", "tree_shapes"):
        return _sweep(read_result(file, Sweep))
    if name == "demo":
        found = json.loads(file.read_text())
        speeds = found["tokens_per_second"]
        cells = [f"{found['spec_decode_acceptance_length']:.2f}", f"{found['identical_answers']} of {found['answers']}"]
        return markdown(
            ["acceptance length", "same", "speedup"], [[*cells, f"{speeds['speculative'] / speeds['plain']:.2f}"]]
        )
    if name == "tree_overhead":
        return markdown(*step_costs(json.loads(file.read_text())["contexts"]))
    if name == "draft_step":
        return _draft_step(file)
    if name == "convert_speed":
        found = json.loads(file.read_text())
        cells = [f"{found['head_bytes'] / 1e9:.2f} GB", f"{found['peak_bytes'] / 1e6:.0f} MB"]
        return markdown(
            ["head", "peak memory", "speed against copying"], [[*cells, f"{found['speed_against_copying']:.2f}"]]
        )
    return _compare(read_result(file, Compare))


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def with_bounds(figure: Figure | None, digits: int = 2) -> str:
    """A figure and its interval."""
    if figure is None:
        return ""
    value, spread = number(figure, digits), bounds(figure, digits)
    return f"{value} ({spread})" if spread else value


def step_costs(contexts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of `tree_overhead`'s figures."""
    columns, rows = ["tokens of context"], [[tokens] for tokens in contexts]
    for part in ("step", "verify"):
        columns += [f"{part}: chain, ms", "tree, ms", "ratio (95%)"]
        for row, found in zip(rows, contexts.values(), strict=True):
            one = found[part]
            row += [f"{one['stock_ms']:.1f}", f"{one['tree_ms']:.1f}", with_bounds(Figure(**one["ratio"]))]
    return columns, rows


def _acceptance(result: AcceptanceResult) -> str:
    found = result.eagle.acceptance
    rows = [["acceptance length", with_bounds(found.acceptance_length)]]
    for i, (rate, given) in enumerate(zip(found.per_position, found.conditional, strict=True), 1):
        rows.append([f"accepted at position {i}; given all before", f"{with_bounds(rate)}; {with_bounds(given)}"])
    rows += [[group.name, with_bounds(group.acceptance.acceptance_length)] for group in result.eagle.by_category]
    rows.append(
        ["counted by vLLM but trimmed", f"{found.trimmed_tokens}, {found.trimmed_accepted_tokens} of them drafts"]
    )
    rows.append(["emitted per drafted step", with_bounds(found.emitted_length)])
    return markdown(["what", "result"], rows) + f"\n\n`{result.eagle.environment.command}`, {result.duration:.0f} s"


def _cells(row: Row) -> list[str]:
    length = row.acceptance.acceptance_length if row.acceptance else None
    flagged = " (impossible)" if row.impossible else ""
    same = "" if row.identical is None else f"{row.identical} of {row.answers}"
    return [row.name, with_bounds(length), with_bounds(row.speedup) + flagged, same]


def _compare(result: Compare) -> str:
    said = (
        f"{result.questions} questions, up to {result.max_tokens} tokens, T = {result.temperature:g}, "
        f"{result.engine['dtype']}, {result.rows[0].concurrency} at a time"
    )
    columns = ["drafts", "acceptance length (95%)", "speed, times plain decoding (95%)", "same answers"]
    return (
        f"{said}\n\n" + markdown(columns, [_cells(row) for row in result.rows]) + f"\n\n`{result.environment.command}`"
    )


def _sweep(result: Sweep) -> str:
    rows = [[str(row.concurrency), *_cells(row)[:3]] for row in [*result.rows, *result.trees]]
    measured = markdown(["batch", "drafts", "acceptance length (95%)", "speed (95%)"], rows)
    held = [
        [
            str(p.num_speculative_tokens),
            str(p.concurrency),
            f"{p.predicted:.2f}",
            f"{p.measured:.2f}",
            f"{p.error:+.1%}",
        ]
        for p in result.held_out
    ]
    predicted = markdown(["k left out", "batch", "predicted", "measured", "error"], held)
    return f"{measured}\n\n{predicted}\n\n`{result.environment.command}`"


def _draft_step(file: Path) -> str:
    parts = []
    for title, cases in json.loads(file.read_text())["figures"].items():
        batches = list(next(iter(cases.values())))
        rows = [
            [case, *(f"{c['median']:.2f} ({c['min']:.2f} to {c['max']:.2f})" for c in found.values())]
            for case, found in cases.items()
        ]
        parts.append(f"{title}\n\n" + markdown(["", *(f"batch {b}" for b in batches)], rows))
    return "\n\n".join(parts)
