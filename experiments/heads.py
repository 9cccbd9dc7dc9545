"""Trained heads side by side: `python -m experiments.heads HEAD... --target TARGET -o FOLDER`.

For every head, at every k, greedy and sampled: acceptance length in vLLM's scheduler. Then, one request at a time and
on fewer questions, what it buys: milliseconds of drafting, and speed against plain decoding in the same interleaved
run. Each measurement is a file in FOLDER, named by what was measured: run again, the command goes on with what is
missing, and heads can be added. FOLDER/heads.md has the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from vllm_eagle_plugin.benchmarks.acceptance import measure, one_engine, workload
from vllm_eagle_plugin.benchmarks.compare import compare
from vllm_eagle_plugin.benchmarks.methods import Method, check_head, engine_options, head_sha256
from vllm_eagle_plugin.benchmarks.prompts import Question, fingerprint, first_turns, read_prompts
from vllm_eagle_plugin.benchmarks.report.terminal import bounds, number
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult, Figure, read_result
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.speed_schema import Compare

from vllm_eagle_plugin.command import run_function
from vllm_eagle_plugin.errors import HeadError, UsageError

from . import options


@dataclass(frozen=True)
class Asking:
    """What every head is asked, and the folder of the answers."""

    target: str
    folder: Path
    questions: list[Question]
    prompts: str
    engine: dict[str, Any]

    def file(self, kind: str, head: Path, questions: Sequence[Question], sampling: Sampling, k: int) -> Path:
        """Where a measurement goes: another name for other weights or other questions."""
        weights = (head_sha256(str(head)) or "hub")[:8]
        asked = fingerprint([*questions])[:8]
        name = f"{kind}-{head.name}-{weights}-{asked}-{sampling.max_tokens}-T{sampling.temperature:g}-k{k}.json"
        return self.folder / name

    def length(self, head: Path, k: int, sampling: Sampling, concurrency: int) -> AcceptanceResult:
        """Acceptance at one k and temperature."""
        file = self.file("length", head, self.questions, sampling, k)
        if not file.exists():
            print(f"{head.name}, k = {k}, T = {sampling.temperature:g}", flush=True)
            with one_engine(self.target, method(head, k), self.engine) as worker:
                asked = (self.target, str(head), self.questions, self.prompts, sampling, concurrency)
                run = measure(worker, self.questions, sampling, concurrency, workload(worker, *asked))
            keep(file, run, run.eagle.partial)
        return read_result(file, AcceptanceResult)

    def speed(self, head: Path, ks: Sequence[int], questions: list[Question], sampling: Sampling) -> Compare:
        """Every k against plain decoding, all engines up together, one request at a time."""
        file = self.file("speed", head, questions, sampling, max(ks))
        if not file.exists():
            print(f"{head.name}, speed", flush=True)
            ways = [method(head, at) for at in ks]
            run = compare(self.target, ways, questions, self.prompts, sampling, 1, 1, self.engine)
            keep(file, run, run.partial)
        return read_result(file, Compare)


def keep(file: Path, run: Any, partial: str | None) -> None:
    """Write a whole measurement.

    Raises:
        HeadError: it is a part only.
    """
    if partial:
        raise HeadError(f"the run ended early: {partial.rstrip('.')}", "", "Run the command again")
    half = file.with_suffix(".part")
    half.write_text(run.model_dump_json() + "\n")
    half.replace(file)


def method(head: Path, k: int) -> Method:
    """The head as a way to decode."""
    config: dict[str, Any] = {"model": str(head), "num_speculative_tokens": k}
    if head_config(head).get("model_type") == "medusa":  # vLLM's own; of the others the plugin knows the method
        config["method"] = "medusa"
    return Method(f"{head.name}, k={k}", config)


def head_config(head: Path) -> dict[str, Any]:
    """config.json of a head; empty for one on the hub."""
    try:
        value = json.loads((head / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def parameters(head: Path) -> int:
    """Numbers in a head's weight files, token maps and copies of the target's lm_head (Medusa) left out."""
    from safetensors import safe_open

    total, copied = 0, head_config(head).get("original_lm_head", False)
    for file in sorted(head.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, it is no dictionary
                part = opened.get_slice(name)
                counts = part.get_dtype() in ("BF16", "F16", "F32") and not (copied and name.startswith("lm_head"))
                total += math.prod(part.get_shape()) if counts else 0
    return total


#: (head, temperature) -> k -> acceptance length; head -> k -> row of a comparison.
Lengths = dict[tuple[Path, float], dict[int, Figure]]


def table(lengths: Lengths, speeds: dict[Path, Compare]) -> Iterator[str]:
    """Acceptance length by k, and what it buys, as lines of Markdown."""
    ks = sorted({k for by_k in lengths.values() for k in by_k})
    columns = ["head", "parameters", "T", *(f"k = {k}" for k in ks), "drafting, ms by k", "speedup by k"]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for (head, heat), by_k in lengths.items():
        rows = [] if heat or head not in speeds else speeds[head].rows[1:]
        cells = [f"`{head.name}`", f"{parameters(head) / 1e6:.1f} M", f"{heat:g}"]
        cells += [f"{number(by_k[k])} ({bounds(by_k[k])})" for k in ks]
        cells.append(", ".join(f"{row.step_ms.draft:.1f}" for row in rows if row.step_ms))
        cells.append(", ".join(number(row.speedup) for row in rows))
        yield "| " + " | ".join(cells) + " |"


def check(heads: Sequence[Path], most: int) -> None:
    """Raises HeadError where a head cannot be measured, UsageError where two have one name or k is too large."""
    if len({head.name for head in heads}) < len(heads):
        raise UsageError("two heads of one name", "Folders named as the table is to call them were expected")
    for head in heads:
        check_head(str(head))
        limit = head_config(head).get("num_heads", math.inf)
        if most > limit:
            raise UsageError(f"k = {most} for {head}", f"It drafts {limit} tokens at most", "Pass smaller -k")


def main(
    heads: Annotated[list[Path], typer.Argument(help="Converted heads, or Medusa heads of `train head`.")],
    target: options.Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    prompts: options.Prompts = "builtin",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    k: Annotated[list[int] | None, typer.Option("-k", min=1, help="Drafts per step; repeat. Default: 1 to 6.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(min=0, help="Repeat. Default: 0 and 1.")] = None,
    max_tokens: options.Longest = 256,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time; speed is always of one.")] = 8,
    speed_questions: Annotated[int, typer.Option(min=0, help="Questions to measure speed on; 0: do not.")] = 8,
    speed_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of those answers.")] = 64,
    engine_args: Annotated[str | None, typer.Option(help="vLLM engine arguments as JSON.")] = None,
) -> None:
    """Measure what is missing, and write the table."""
    ks, temperatures = sorted(set(k or range(1, 7))), sorted(set(temperature or (0.0, 1.0)))
    check(heads, ks[-1])
    questions = first_turns(read_prompts(prompts, limit))
    output.mkdir(parents=True, exist_ok=True)
    asking = Asking(target, output, questions, prompts, engine_options(engine_args))
    lengths: Lengths = {}
    for head in heads:
        for at in ks:
            for heat in temperatures:
                run = asking.length(head, at, Sampling(heat, max_tokens), concurrency)
                lengths.setdefault((head, heat), {})[at] = run.eagle.acceptance.acceptance_length
    few = Sampling(0.0, speed_tokens)
    speeds = {head: asking.speed(head, ks, questions[:speed_questions], few) for head in heads if speed_questions}
    text = "\n".join(table(lengths, speeds)) + "\n"
    (output / "heads.md").write_text(text)
    Console(highlight=False, markup=False).print(text)


if __name__ == "__main__":
    run_function(main)
