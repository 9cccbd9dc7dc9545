"""What a draft step costs, and that the plugin costs nothing where it is not used.

**Draft step.** `propose` of the proposer that vLLM built, timed inside the running engine on full decode
steps: a random-weight Llama target (4 layers, 32,000 tokens, bf16), greedy, k = 4. Attention-free heads of
its width against the EAGLE-1 Llama head of stock vLLM. All but the projection head end in the target's
lm_head, here most of the arithmetic. Random heads are hardly ever right; wrong drafts cost what right ones do.

**Plugin unused.** Whole engine steps of plain decoding and of the stock head, with the plugin loaded
(`VLLM_PLUGINS=eagle`) and without (`VLLM_PLUGINS=`). A ratio of 1 within its spread is what to expect.

Each case is an engine in a process of its own; those that are compared are up together and take turns of
a few seconds, so that what else the machine does falls on all of them alike. A figure is the median of the
turns' medians (lowest to highest); ratios are taken within a round of turns. What differs from process to
process (its core, its memory) is not in that range: run it again, on an idle machine. CPU only, one thread, eager.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..command import run_function
from ..compat.running import runner_of
from .draft_step_models import LAYERS, VOCAB, write_models
from .environment import hardware, versions

K, BATCHES, PROMPT, TOKENS = 4, (1, 8, 32), 32, 7
OURS, UNUSED = ("feature", "surgery", "projection"), ("plain", "stock")
OFF, MODULE = " without plugin", "vllm_eagle_plugin.benchmarks.draft_step"
PLUGIN = "vllm_eagle_plugin.compat.registration"  # imported where the plugin is loaded
GROUPS = (("plain", "plain" + OFF), ("stock", "stock" + OFF, *OURS))
#: Medians of one turn, batch size -> name -> figure; and case -> its turns.
Figures = dict[str, dict[str, float]]
Turns = dict[str, list[Figures]]


def main(
    width: Annotated[int, typer.Option(help="Hidden size of target and heads; a multiple of 64.", min=64)] = 1024,
    rounds: Annotated[int, typer.Option(help="Turns of every case.", min=1)] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    case: Annotated[str | None, typer.Option(hidden=True, help="Be the engine of this case.")] = None,
    models: Annotated[Path, typer.Option(hidden=True, help="Where its models are.")] = Path(),
) -> None:
    """Time draft steps of our heads against stock EAGLE-1, and stock vLLM with and without the plugin."""
    if case is not None:
        take_turns(case, models)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), width)
        turns = {k: v for group in GROUPS for k, v in run_group(group, rounds, Path(folder)).items()}
    result = {
        "command": shlex.join(["python", "-m", MODULE, *sys.argv[1:]]),
        "machine": {**machine(), "load_average": [load, os.getloadavg()[0]]},
        "settings": {"width": width, "layers": LAYERS, "vocab": VOCAB, "k": K, "dtype": "bfloat16", "rounds": rounds},
        "figures": tables(turns),
    }
    report(result)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def run_group(cases: tuple[str, ...], rounds: int, models: Path) -> Turns:
    """Start the engines of `cases` and let them take turns, in reverse order every other round."""
    workers = {case: start(case, models) for case in cases}
    turns: Turns = {case: [] for case in cases}
    try:
        for i in track(range(-1, rounds), ", ".join(cases), console=Console(stderr=True)):
            for case in cases if i % 2 else cases[::-1]:
                figures = turn(case, workers[case], models)
                if i >= 0:  # the first round warms up
                    turns[case].append(figures)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return turns


def start(case: str, models: Path) -> Popen[str]:
    command = [sys.executable, "-m", MODULE, "--case", case.removesuffix(OFF), "--models", str(models)]
    settings = {"VLLM_PLUGINS": "" if case.endswith(OFF) else "eagle", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    settings |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    with (models / f"{case}.log").open("w") as log:
        return Popen(command, env={**os.environ, **settings}, stdin=PIPE, stdout=PIPE, stderr=log, text=True)


def turn(case: str, worker: Popen[str], models: Path) -> Figures:
    assert worker.stdin is not None and worker.stdout is not None  # noqa: PT018
    worker.stdin.write("go\n")
    worker.stdin.flush()
    line = next((line for line in worker.stdout if line.startswith('{"plugin"')), None)
    if line is None:
        log = (models / f"{case}.log").read_text(errors="replace")[-3000:]
        sys.exit(f"error: the engine of {case!r} stopped with exit code {worker.wait()}:\n{log}")
    answer = json.loads(line)
    if answer["plugin"] is case.endswith(OFF):
        sys.exit(f"error: {case!r} ran with plugin={answer['plugin']}. Is vllm-eagle-plugin installed here?")
    return answer["figures"]


def take_turns(case: str, models: Path) -> None:
    """Bring up an engine; for each line on stdin decode at all batch sizes and print the times."""
    from vllm import LLM, SamplingParams, TokensPrompt

    options: dict[str, Any] = {}
    if case != "plain":
        options["speculative_config"] = {"model": str(models / case), "method": "eagle", "num_speculative_tokens": K}
    options |= {"max_num_seqs": max(BATCHES), "max_num_batched_tokens": PROMPT * max(BATCHES), "max_model_len": 128}
    options |= {"dtype": "bfloat16", "enforce_eager": True, "skip_tokenizer_init": True, "enable_prefix_caching": False}
    llm = LLM(str(models / "target"), **options)
    probe = Probe(llm, 1 if case == "plain" else K + 1)
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    for _ in sys.stdin:
        for batch in BATCHES:
            probe.batch = batch
            prompts = [[(37 * i + 101 * j) % VOCAB for j in range(PROMPT)] for i in range(batch)]
            llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
        print(json.dumps({"plugin": PLUGIN in sys.modules, "figures": probe.figures()}), flush=True)


class Probe:
    """Times an engine's steps and its drafter's `propose`, in steps in which every request decodes."""

    def __init__(self, llm: Any, tokens_per_request: int) -> None:
        self.tokens_per_request, self.batch, self.full = tokens_per_request, 0, False
        #: (batch size, figure) -> seconds
        self.samples: dict[tuple[int, str], list[float]] = {}
        engine = llm.llm_engine
        runner = runner_of(llm)
        self.execute, runner.execute_model = runner.execute_model, self.execute_model
        engine.step = self.timed("step", engine.step)
        if hasattr(runner, "drafter"):
            runner.drafter.propose = self.timed("draft", runner.drafter.propose)

    def execute_model(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        self.full = list(scheduled.num_scheduled_tokens.values()) == [self.tokens_per_request] * self.batch
        return self.execute(scheduled, *args, **kwargs)

    def timed(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.full &= what == "draft"  # a step has yet to show what it does
            started = time.perf_counter()
            result = call(*args, **kwargs)
            if self.full:
                self.samples.setdefault((self.batch, what), []).append(time.perf_counter() - started)
            return result

        return timed

    def figures(self) -> Figures:
        """Median milliseconds of a step, and of a drafted token, since the last call."""
        found: Figures = {}
        for (batch, figure), seconds in self.samples.items():
            found.setdefault(str(batch), {})[figure] = 1e3 * median(seconds) / (K if figure == "draft" else 1)
        self.samples.clear()
        return found


def tables(turns: Turns) -> dict[str, dict[str, Figures]]:
    """The figures of all turns: title -> case -> batch size -> median, min, max."""
    return {
        "draft, ms per drafted token": {n: spread(turns, "draft", n) for n in ("stock", *OURS)},
        "draft, ratio to stock EAGLE-1": {n: spread(turns, "draft", n, "stock") for n in OURS},
        "engine step, ms": {n: spread(turns, "step", n) for n in turns},
        "engine step, plugin unused / no plugin": {n: spread(turns, "step", n, n + OFF) for n in UNUSED},
    }


def spread(turns: Turns, figure: str, case: str, other: str | None = None) -> Figures:
    """By batch size: a figure of `case`, divided by `other`'s of the same round if given."""
    found: Figures = {}
    for batch in map(str, BATCHES):
        values = [taken[batch][figure] for taken in turns[case]]
        if other is not None:
            values = [v / taken[batch][figure] for v, taken in zip(values, turns[other], strict=True)]
        found[batch] = {f.__name__: round(f(values), 4) for f in (median, min, max)}
    return found


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    preloaded = [Path(library).name for library in os.environ.get("LD_PRELOAD", "").split(":")]
    return {**hardware(), **versions(), "preloaded": preloaded}


def report(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print({"command": result["command"], **result["machine"], **result["settings"]})
    for title, rows in result["figures"].items():
        table = Table("", *(f"batch {b}" for b in BATCHES), title=title, title_justify="left")
        for name, row in rows.items():
            table.add_row(name, *(f"{c['median']:.2f} ({c['min']:.2f} to {c['max']:.2f})" for c in row.values()))
        console.print(table)


if __name__ == "__main__":
    run_function(main)
