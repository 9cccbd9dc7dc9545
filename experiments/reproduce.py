"""Every figure of README and docs that this machine can measure, by one command: `python -m experiments.reproduce`.

Runs each benchmark as a user would, in a process of its own. Raw results, pages and pictures go to `artifacts/bench`;
what README and docs quote goes to `experiments/results`, and their tables are written anew. A line of figures is
appended to the history, and those that moved since the last line of the same hardware are shown. `--quick` runs
everything, on so little that the figures mean nothing: to see that it works.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from vllm_eagle_plugin.benchmarks.environment import environment, load
from vllm_eagle_plugin.benchmarks.methods import head_sha256
from vllm_eagle_plugin.benchmarks.prompts import BUILTIN
from vllm_eagle_plugin.benchmarks.report.terminal import with_bounds

from vllm_eagle_plugin.command import run_function
from vllm_eagle_plugin.errors import HeadError, UsageError

from . import options, results
from .figures import results as results_of
from .history import Line, append, changes, read
from .worthless import write_worthless

HISTORY = Path(__file__).with_name("history.jsonl")
#: Where `vllm-eagle demo` works; its target and converted head.
WORK = Path("artifacts/demo")
DEMO = (str(WORK / "target"), str(WORK / "head"))
EXACT = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
FAST = {**EXACT, "dtype": "bfloat16"}
#: Measured by modules of their own, with what --quick asks of them.
OWN = {
    "tree_overhead": ["--context", "50", "--texts", "2", "--max-tokens", "12"],
    "draft_step": ["--rounds", "1", "--width", "64"],
    "convert_speed": ["--width", "1024", "--inner", "1024", "--vocab", "4096", "--rounds", "1"],
}
#: Trees to sweep, of 6 to 16 nodes: siblings beside a chain, wider ones, deeper ones.
SHAPES = ("2,1,1", "4,1,1", "4,2,1/16", "8x2", "4x3", "8x3/16", "4x5/16", "auto/16")
#: A copy of the head with random weights; how many are asked at a time, and how many questions.
WORTHLESS = Path("artifacts/worthless")
BATCHES = {"worthless_1": (1, 8), "worthless_8": (8, 64), "worthless_32": (32, 80)}
#: How often its engines are started: processes differ by more at the same work than the few percent looked for.
STARTS = 3
NAMES = (
    "demo", "acceptance", "compare", "sweep", "trees", "tree_shapes", "tree_lengths", "tree_lengths_sampled",
    *BATCHES, *OWN,
)  # fmt: skip
#: What --quick asks of the `bench` verbs: as many questions as the largest batch has.
QUICK = ["--limit", "8", "--max-tokens", "12"]


def main(
    target: options.Target = DEMO[0],
    head: options.Head = DEMO[1],
    prompts: options.Prompts = BUILTIN,
    beside: Annotated[list[str] | None, typer.Option(help="Another converted head, for `compare`; repeat.")] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="For raw results, pages and pictures.")] = Path(
        "artifacts/bench"
    ),
    only: Annotated[list[str] | None, typer.Option(help=f"Only this one of {', '.join(NAMES)}; repeat.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="On next to nothing; the repository is left alone.")] = False,
) -> None:
    """Measure everything again."""
    unknown = [name for name in only or () if name not in NAMES]
    if unknown:
        raise UsageError(f"--only {unknown[0]}", f"Expected: {', '.join(NAMES)}")
    kept, history = (folder / "results", folder / "history.jsonl") if quick else (results.FOLDER, HISTORY)
    before, earlier, others = load(), read(history), beside or []
    folder.mkdir(parents=True, exist_ok=True)
    if (target, head) == DEMO:
        others = [*prepare_demo(), *others]
    # The demo is of its own models, and as quick as it gets.
    usual = [name for name in NAMES if name != "demo" or ((target, head) == DEMO and not quick)]
    chosen = [name for name in NAMES if name in (only or usual)]
    if any(name in BATCHES for name in chosen):
        write_worthless(head, WORTHLESS)
    commands = {name: arguments(name, target, head, prompts, folder, quick, others) for name in chosen}
    done, stopped = run_all(commands)
    line = Line(
        environment=environment(before), target=target, head=head, head_sha256=head_sha256(head), quick=quick,
        failed=[name for name in chosen if name not in done], figures={},
    )  # fmt: skip
    if "demo" in done:
        shutil.copy(WORK / "result.json", folder / "demo.json")
    for name in done:
        for kind, result in results_of(name, folder / f"{name}.json").items():
            results.write(kind, result, kept)
            line.figures |= {f"{kind}: {what}": figure for what, figure in result.figures()}
    if done:
        append(history, line)
    for document in [] if quick else results.documents():
        document.write_text(results.renewed(document.read_text()))
    show_changes(earlier, line)
    if line.failed:
        what = f"{'interrupted' if stopped else 'failed'}: {', '.join(line.failed)}"
        raise HeadError(what, f"Done: {', '.join(done) or 'nothing'}")


def run_all(commands: dict[str, list[str]]) -> tuple[list[str], bool]:
    """Run everything; returns what came to its end, and whether somebody interrupted it."""
    done: list[str] = []
    for name, command in commands.items():
        Console().rule(name)
        try:
            if not run([sys.executable, "-m", *command]):
                done.append(name)
        except KeyboardInterrupt:
            return done, True
    return done, False


def run(command: list[str]) -> int:
    """Run a command to its end, also when ctrl-C reaches both of us: it has something to write then."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def show_changes(earlier: Sequence[Line], line: Line) -> None:
    """The figures beside those of the last line of the same conditions."""
    if not (moved := [*changes(earlier, line)]):
        return
    table = Table("figure", "before", "now", "", "since")
    for figure, date, old, new, apart in moved:
        table.add_row(figure, with_bounds(old, 3), with_bounds(new, 3), "CHANGED" if apart else "", date)
    Console(highlight=False, markup=False).print(table)


def arguments(
    name: str, target: str, head: str, prompts: str, folder: Path, quick: bool, beside: Sequence[str] = ()
) -> list[str]:
    """Module and arguments of one benchmark."""
    file = folder / f"{name}.json"
    if name == "demo":
        return ["vllm_eagle_plugin.cli", "demo", f"--work={WORK}"]
    if name in OWN:
        models = [f"--target={target}", f"--head={head}"] if name == "tree_overhead" else []
        return [f"experiments.{name}", *models, f"--json={file}", *(OWN[name] if quick else [])]
    verb, how = bench(name, str(WORTHLESS) if name in BATCHES else head)
    if name in BATCHES and not quick:
        how += ["--rounds", str(STARTS), "--fresh"]
    written = [f"--output={file}", f"--html={file.with_suffix('.html')}", f"--plot={file.with_suffix('.png')}"]
    others = [part for other in beside for part in ("--head", other)] if name == "compare" else []
    asked = ["--target", target, "--prompts", prompts, *how, *others, *(QUICK if quick else [])]
    return ["vllm_eagle_plugin.cli", "bench", verb, *asked, *written]


def bench(name: str, head: str) -> tuple[str, list[str]]:
    """The verb of a benchmark and what is asked of it."""

    def way(nodes: int, **eagle: Any) -> list[str]:
        config: dict[str, Any] = {"model": head, "num_speculative_tokens": nodes}
        return ["--spec-config", json.dumps(config | ({"eagle": eagle} if eagle else {}))]

    exact, fast = ["--engine-args", json.dumps(EXACT)], ["--engine-args", json.dumps(FAST)]
    if name == "acceptance":
        return "acceptance", ["--head", head, "-k", "3", "--max-tokens", "128", "--concurrency", "8", *exact]
    if name == "compare":
        few = ["-k", "3", "--max-tokens", "64", "--limit", "16"]
        return "compare", ["--head", head, "--method", "ngram", *few, *exact]
    if name == "sweep":
        batches = ["--batch", "1", "--batch", "4", "--synthetic", "2.5"]
        return "sweep", ["--head", head, "-k", "4", *batches, "--max-tokens", "48", "--limit", "8", *exact]
    if name == "tree_shapes":
        ways = ["-k", "3", "--batch", "1", *(part for shape in SHAPES for part in ("--tree", shape))]
        return "sweep", ["--head", head, *ways, "--max-tokens", "48", "--limit", "12", *fast]
    if name == "trees":
        chains = [*way(1), *way(2), *way(4, adaptive=True)]
        trees = [*way(8, tree="auto"), *way(8, tree={"kind": "dynamic", "depth": 3})]
        return "compare", [*chains, *trees, "--max-tokens", "64", "--limit", "12", *fast]
    if name in BATCHES:
        at_once, questions = BATCHES[name]
        ways = [*way(4, adaptive=True), *way(8, tree="auto")]
        long = ["--max-tokens", "128", "--ignore-eos", "--limit", str(questions), "--concurrency", str(at_once)]
        return "compare", [*ways, *long, *fast]
    ways = [*way(5), *way(16, tree={"kind": "dynamic", "depth": 5})]
    temperature = "1" if name == "tree_lengths_sampled" else "0"
    return "compare", [*ways, "--temperature", temperature, "--max-tokens", "64", "--concurrency", "8", *exact]


def prepare_demo() -> list[str]:
    """The demo's target and head, as `vllm-eagle demo` makes them, and the other shipped heads, converted: their
    folders."""
    from vllm_eagle_plugin.conversion import convert

    from vllm_eagle_plugin.demo.run import shipped_head
    from vllm_eagle_plugin.demo.target import build_target

    target = build_target(Path(DEMO[0]))
    shipped = shipped_head()
    convert(shipped, str(target), Path(DEMO[1]), force=True)
    others = sorted(file.parent for file in shipped.parent.glob("*/config.json") if file.parent != shipped)
    for other in others:
        convert(other, str(target), WORK / "heads" / other.name, force=True)
    return [str(WORK / "heads" / other.name) for other in others]


if __name__ == "__main__":
    run_function(main)
