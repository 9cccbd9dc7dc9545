"""From what a benchmark wrote to the small result that is kept of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult, Environment, Figure, read_result
from vllm_eagle_plugin.benchmarks.speed_schema import Compare, Row, Sweep

from .results import Cell, Result

#: What each of them measures.
WHAT = {
    "demo": "The demo: three questions, one at a time, fp32, k = 3.",
    "acceptance": "The demo's head on the built-in questions, k = 3, T = 0, fp32.",
    "compare": "All shipped heads and n-grams against plain decoding, interleaved, k = 3, fp32.",
    "sweep": "Every k at every batch size against plain decoding, fp32.",
    "sweep_cost": "What a step costs, fitted to that sweep, and how well it predicts a k that was left out.",
    "trees": "Trees and adaptive length against chains, bf16, one request at a time.",
    "tree_shapes": "Trees of many shapes against chains, bf16, one request at a time.",
    "tree_overhead": "Steps of a tree of one branch against those of the stock chain of as many drafts, bf16.",
    "tree_lengths": "Trees against the chain of their depth, T = 0, fp32.",
    "tree_lengths_sampled": "Trees against the chain of their depth, T = 1, fp32.",
    "worthless_1": "A head of random weights, one request at a time, bf16.",
    "worthless_8": "A head of random weights, eight requests at a time, bf16.",
    "worthless_32": "A head of random weights, 32 requests at a time, bf16.",
    "draft_step": "A drafted token, and a step with the plugin unused: medians, lowest to highest.",
    "convert_speed": "Converting a large head beside copying its files.",
}


def results(name: str, file: Path) -> dict[str, Result]:
    """The results of a benchmark's file, by name."""
    if name == "acceptance":
        length = read_result(file, AcceptanceResult)
        return _made(name, length.eagle.environment, "what", {"value": 2}, _acceptance(length))
    if name in ("sweep", "tree_shapes"):
        swept = read_result(file, Sweep)
        rows = {f"{row.concurrency} at a time, {row.name}": _speeds(row) for row in [*swept.rows, *swept.trees]}
        made = _made(name, swept.environment, "drafts", {"acceptance length": 2, "speedup": 2}, rows)
        if name == "sweep":
            made |= _made("sweep_cost", swept.environment, "what", {"figure": 2}, _cost(swept))
        return made
    if name in _PLAIN:
        raw = json.loads(file.read_text())
        columns, rows = _PLAIN[name](raw)
        return _made(name, Environment.model_validate(raw["environment"]), "what", columns, rows)
    compared = read_result(file, Compare)
    columns = {"acceptance length": 2, "drafting, ms a step": 1, "speedup": 2, "same answers": 0}
    return _made(name, compared.environment, "drafts", columns, {row.name: _compared(row) for row in compared.rows})


def _made(
    name: str, environment: Environment, first: str, columns: dict[str, int], rows: Mapping[str, Iterable[Cell]]
) -> dict[str, Result]:
    result = Result(
        what=WHAT[name],
        date=environment.date[:10],
        commit=commit(),
        machine=machine(environment),
        command=environment.command,
        first=first,
        columns=columns,
        rows={row: list(cells) for row, cells in rows.items()},
    )
    return {name: result}


def commit() -> str:
    """The repository's, with a mark where files have been changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    return (head or "unknown") + ("+" if changed else "")


def machine(environment: Environment) -> str:
    """The hardware and vLLM in few words."""
    hardware, versions = environment.hardware, environment.versions
    gpus = hardware.get("gpus")
    where = ", ".join(gpus) if gpus else f"{hardware.get('cores')} cores of a shared {hardware.get('cpu')}"
    return where + "".join(
        f", {name} {versions[name]}" for name in versions if name.startswith("vllm") and "eagle" not in name
    )


def _cell(figure: Figure | None) -> Cell:
    if figure is None or figure.value is None:
        return None
    if figure.low is None or figure.high is None:
        return round(figure.value, 4)
    return round(figure.value, 4), round(figure.low, 4), round(figure.high, 4)


def _speeds(row: Row) -> list[Cell]:
    return [_cell(row.acceptance.acceptance_length if row.acceptance else None), _cell(row.speedup)]


def _compared(row: Row) -> list[Cell]:
    length, speedup = _speeds(row)
    drafting = round(row.step_ms.draft, 3) if row.step_ms and row.acceptance else None
    return [length, drafting, speedup, "" if row.identical is None else f"{row.identical} of {row.answers}"]


def _acceptance(result: AcceptanceResult) -> dict[str, list[Cell]]:
    figures = result.eagle.acceptance
    rows = {"acceptance length": figures.acceptance_length}
    for i, (rate, given) in enumerate(zip(figures.per_position, figures.conditional, strict=True), 1):
        rows |= {f"accepted at position {i}": rate, f"position {i}, given all before": given}
    rows |= {f"length, {group.name}": group.acceptance.acceptance_length for group in result.eagle.by_category}
    rows["emitted per drafted step"] = figures.emitted_length
    return {name: [_cell(figure)] for name, figure in rows.items()} | {"seconds": [round(result.duration, 1)]}


def _cost(result: Sweep) -> dict[str, list[Cell]]:
    rows: dict[str, list[Cell]] = {}
    for name, value in result.cost.model_dump(exclude={"rms_error"}).items():
        rows[f"{name.replace('_', ' ')}, ms"] = [round(value, 4)]
    for p in result.held_out:
        rows[f"k = {p.num_speculative_tokens} left out, {p.concurrency} at a time: error, %"] = [
            round(100 * p.error, 2)
        ]
    for s in result.synthetic:
        at = f"synthetic length {s.acceptance_length:g}, {s.concurrency} at a time"
        rows |= {f"{at}: predicted": [round(s.predicted, 4)], f"{at}: measured": [round(s.measured or 0.0, 4)]}
    return rows


def _demo(raw: dict[str, Any]) -> tuple[dict[str, int], dict[str, list[Cell]]]:
    speeds = raw["tokens_per_second"]
    cells: list[Cell] = [raw["spec_decode_acceptance_length"], speeds["speculative"] / speeds["plain"]]
    same = f"{raw['identical_answers']} of {raw['answers']}"
    return {"acceptance length": 2, "speedup": 2, "same answers": 0}, {"the demo": [*cells, same]}


def _draft_step(raw: dict[str, Any]) -> tuple[dict[str, int], dict[str, list[Cell]]]:
    rows: dict[str, list[Cell]] = {}
    for title, cases in raw["figures"].items():
        for case, by_batch in cases.items():
            rows[f"{title}: {case}"] = [_cell(Figure(**spread)) for spread in by_batch.values()]
    batches = next(iter(next(iter(raw["figures"].values())).values()))
    return {f"batch {batch}": 2 for batch in batches}, rows


def _tree_overhead(raw: dict[str, Any]) -> tuple[dict[str, int], dict[str, list[Cell]]]:
    columns = {"step: chain, ms": 1, "step: tree, ms": 1, "ratio": 2, "target's pass and sampling: ratio": 2}
    rows: dict[str, list[Cell]] = {}
    for tokens, one in raw["contexts"].items():
        step, verify = one["step"], one["verify"]
        ratios = [_cell(Figure(**part["ratio"])) for part in (step, verify)]
        rows[f"{tokens} tokens of context"] = [round(step["stock_ms"], 2), round(step["tree_ms"], 2), *ratios]
    return columns, rows


def _convert_speed(raw: dict[str, Any]) -> tuple[dict[str, int], dict[str, list[Cell]]]:
    cells: list[Cell] = [round(raw["peak_bytes"] / 1e6, 1), round(raw["speed_against_copying"], 4)]
    row = f"a head of {raw['head_bytes'] / 1e9:.2f} GB, largest tensor {raw['largest_tensor_bytes'] / 1e9:.2f} GB"
    return {"peak memory, MB": 0, "times the speed of copying": 2}, {row: cells}


_PLAIN = {"demo": _demo, "draft_step": _draft_step, "tree_overhead": _tree_overhead, "convert_speed": _convert_speed}
