"""Trained heads side by side: `python -m vllm_eagle_plugin.benchmarks.heads HEAD... --target TARGET -o FOLDER`.

For every head, at every k, greedy and sampled: acceptance length in vLLM's scheduler. Then, one request at a time and
on fewer questions, what it buys: milliseconds of drafting, and speed against plain decoding in the same interleaved
run. Each measurement is kept in FOLDER/runs as soon as it is there; run again, the command goes on with what is
missing. One JSON file, one table and one picture of all of them follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..command import run_function
from ..errors import HeadError, UsageError
from .acceptance import measure, one_engine, workload
from .compare import compare
from .heads_report import draw, head_config, summarise, table
from .methods import Method, check_head, engine_options, head_sha256
from .prompts import Question, fingerprint, first_turns, read_prompts
from .schema import AcceptanceResult, read_result
from .session import Sampling
from .speed import Compare


def main(
    heads: Annotated[list[Path], typer.Argument(help="Converted heads, or Medusa heads of `train head`.")],
    target: Annotated[str, typer.Option(help="The model that decides: a folder or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    prompts: Annotated[str, typer.Option(help="JSONL, ShareGPT JSON or text file, or `builtin`.")] = "builtin",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    k: Annotated[list[int] | None, typer.Option("-k", min=1, help="Drafts per step; repeat. Default: 1 to 6.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(min=0, help="Repeat. Default: 0 and 1.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 256,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time; speed is always of one.")] = 8,
    speed_questions: Annotated[int, typer.Option(min=0, help="Questions to measure speed on; 0: do not.")] = 8,
    speed_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of those answers.")] = 64,
    engine_args: Annotated[str | None, typer.Option(help="vLLM engine arguments as JSON.")] = None,
) -> None:
    """Measure what is missing, and write heads.json, heads.md and heads.svg."""
    named = {head.name: head for head in heads}
    if len(named) < len(heads):
        raise UsageError("two heads of one name", "Folders named as the table is to call them were expected")
    ks, temperatures = sorted(set(k or range(1, 7))), sorted(set(temperature or (0.0, 1.0)))
    for head in heads:
        check_head(str(head))
        limit_of = head_config(head).get("num_heads", math.inf)
        if ks[-1] > limit_of:
            raise UsageError(f"k = {ks[-1]} for {head}", f"It drafts {limit_of} tokens at most", "Pass smaller -k")
    questions = first_turns(read_prompts(prompts, limit))
    (output / "runs").mkdir(parents=True, exist_ok=True)
    asking = Asking(target, questions, prompts, engine_options(engine_args), output / "runs")
    lengths = {
        name: [
            run
            for at in ks
            for run in asking.lengths(head, at, [Sampling(heat, max_tokens) for heat in temperatures], concurrency)
        ]
        for name, head in named.items()
    }
    few = Sampling(0.0, speed_tokens)
    speeds = {name: asking.speeds(head, ks, few, speed_questions) for name, head in named.items() if speed_questions}
    result = summarise(named, lengths, speeds, few)
    (output / "heads.json").write_text(result.model_dump_json(indent=1) + "\n")
    (output / "heads.md").write_text(table(result))
    draw(result, output / "heads.svg")
    Console(highlight=False, markup=False).print(table(result))


@dataclass
class Asking:
    """What is asked of every head, and the folder that keeps what came of it."""

    target: str
    questions: list[Question]
    prompts: str
    options: dict[str, Any]
    kept: Path

    def lengths(self, head: Path, k: int, samplings: Sequence[Sampling], concurrency: int) -> list[AcceptanceResult]:
        """Acceptance at one k for each sampling, by one engine for all that is missing."""
        files = {sampling: self._file(head, f"k{k}-T{sampling.temperature:g}") for sampling in samplings}
        missing = [sampling for sampling, file in files.items() if not file.exists()]
        if missing:
            print(f"{head.name}, k = {k}, T = {', '.join(f'{s.temperature:g}' for s in missing)}", flush=True)
            with one_engine(self.target, method(head, k), self.options) as worker:
                for sampling in missing:
                    about = (self.target, str(head), self.questions, self.prompts, sampling, concurrency)
                    run = measure(worker, self.questions, sampling, concurrency, workload(worker, *about))
                    _keep(run, run.eagle.partial, files[sampling])
        runs = [read_result(file, AcceptanceResult) for file in files.values()]
        for (sampling, file), run in zip(files.items(), runs, strict=True):
            work = run.eagle.workload
            self._check(file, sampling, work.target, work.prompts_sha256, work.max_tokens, self.questions)
        return runs

    def speeds(self, head: Path, ks: Sequence[int], sampling: Sampling, limit: int) -> Compare:
        """Every k against plain decoding, all engines up together, one request at a time."""
        file, questions = self._file(head, f"speed-k{'-'.join(map(str, ks))}"), self.questions[:limit]
        if not file.exists():
            print(f"{head.name}, speed", flush=True)
            methods = [method(head, at) for at in ks]
            found = compare(self.target, methods, questions, self.prompts, sampling, 1, 1, self.options)
            _keep(found, found.partial, file)
        run = read_result(file, Compare)
        self._check(file, sampling, run.target, run.prompts_sha256, run.max_tokens, questions)
        return run

    def _file(self, head: Path, what: str) -> Path:
        weights = (head_sha256(str(head)) or "hub")[:8]  # a head that was trained on is measured anew
        return self.kept / f"{head.name}-{weights}-{what}.json"

    def _check(
        self, file: Path, sampling: Sampling, target: str, sha256: str, tokens: int, questions: Sequence[Question]
    ) -> None:
        if (target, sha256, tokens) != (self.target, fingerprint(list(questions)), sampling.max_tokens):
            raise UsageError(
                f"{file} is of another target or other questions", "", "Choose another --output, or remove it"
            )


def _keep(run: AcceptanceResult | Compare, partial: str | None, file: Path) -> None:
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


if __name__ == "__main__":
    run_function(main)
