"""Trained heads side by side: `python -m vllm_eagle_plugin.benchmarks.heads HEAD... --target TARGET -o FOLDER`.

For every head, at every k, greedy and sampled: acceptance length in vLLM's scheduler. Then, one request at a time and
on fewer questions, what it buys: milliseconds of drafting, and speed against plain decoding in the same interleaved
run. FOLDER/heads.json takes in each measurement as soon as it is there; run again, the command goes on with what is
missing, and heads can be added. A table and a picture of all of them follow.
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
from .heads_report import draw, table
from .heads_store import Store, head_config
from .methods import Method, check_head, engine_options, head_sha256
from .prompts import Question, fingerprint, first_turns, read_prompts
from .session import Sampling


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
    output.mkdir(parents=True, exist_ok=True)
    about = (target, prompts, fingerprint(questions), len(questions), max_tokens, concurrency)
    asking = Asking(questions, engine_options(engine_args), Store.open(output / "heads.json", *about))
    for head in heads:
        for at in ks:
            asking.lengths(head, at, temperatures)
    few = Sampling(0.0, speed_tokens)
    for head in heads if speed_questions else ():
        asking.speeds(head, ks, questions[:speed_questions], few)
    result = asking.store.found
    (output / "heads.md").write_text(table(result))
    draw(result, output / "heads.svg")
    Console(highlight=False, markup=False).print(table(result))


@dataclass
class Asking:
    """What is asked of every head, and where the answers go."""

    questions: list[Question]
    options: dict[str, Any]
    store: Store

    def lengths(self, head: Path, k: int, temperatures: Sequence[float]) -> None:
        """Acceptance at one k, by one engine for all temperatures that are missing."""
        about, weights = self.store.found, _weights(head)
        missing = [heat for heat in temperatures if not self.store.has_length(head.name, weights, k, heat)]
        if not missing:
            return
        print(f"{head.name}, k = {k}, T = {', '.join(f'{heat:g}' for heat in missing)}", flush=True)
        with one_engine(about.target, method(head, k), self.options) as worker:
            for heat in missing:
                sampling = Sampling(heat, about.max_tokens)
                asked = (about.target, str(head), self.questions, about.prompts, sampling, about.concurrency)
                work = workload(worker, *asked)
                self.store.check_engine(work.engine)
                run = measure(worker, self.questions, sampling, about.concurrency, work)
                _whole(run.eagle.partial)
                self.store.add_length(head, weights, run)

    def speeds(self, head: Path, ks: Sequence[int], questions: list[Question], sampling: Sampling) -> None:
        """Every k against plain decoding, all engines up together, one request at a time."""
        about, weights = self.store.found, _weights(head)
        if all(self.store.has_speed(head.name, weights, k, len(questions), sampling.max_tokens) for k in ks):
            return
        print(f"{head.name}, speed", flush=True)
        methods = [method(head, at) for at in ks]
        run = compare(about.target, methods, questions, about.prompts, sampling, 1, 1, self.options)
        _whole(run.partial)
        self.store.add_speeds(head, weights, run)


def _weights(head: Path) -> str:
    """Says which weights they are: a head that was trained on is measured anew."""
    return (head_sha256(str(head)) or "hub")[:8]


def _whole(partial: str | None) -> None:
    if partial:
        raise HeadError(f"the run ended early: {partial.rstrip('.')}", "", "Run the command again")


def method(head: Path, k: int) -> Method:
    """The head as a way to decode."""
    config: dict[str, Any] = {"model": str(head), "num_speculative_tokens": k}
    if head_config(head).get("model_type") == "medusa":  # vLLM's own; of the others the plugin knows the method
        config["method"] = "medusa"
    return Method(f"{head.name}, k={k}", config)


if __name__ == "__main__":
    run_function(main)
