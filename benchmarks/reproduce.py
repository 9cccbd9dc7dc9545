"""Every table and picture of README and docs, by one command: `python -m vllm_eagle_plugin.benchmarks.reproduce`.

Runs each benchmark as a user would, in a process of its own; writes JSON, pages and pictures to one folder, and
`tables.md` with the tables as the docs have them; appends a line of figures to the history in the repository, with
hardware and versions, and says what has changed since the last one. `--quick` runs everything, on so little that
the figures mean nothing: to see that it works.
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

from ..command import run_function
from ..errors import HeadError, UsageError
from .environment import environment, load
from .history import Line, append, changes, figures, read
from .methods import head_sha256
from .prompts import BUILTIN
from .tables import tables, with_bounds
from .worthless import write_worthless

HISTORY = Path("benchmarks/history.jsonl")
#: Where `vllm-eagle demo` works; its target and converted head.
WORK = Path("artifacts/demo")
DEMO = (str(WORK / "target"), str(WORK / "head"))
EXACT = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
FAST = {**EXACT, "dtype": "bfloat16"}
NAMES = (
    "demo", "acceptance", "compare", "sweep", "trees", "tree_shapes", "tree_overhead", "tree_lengths",
    "tree_lengths_sampled", "worthless_1", "worthless_8", "worthless_32", "draft_step", "convert_speed",
)  # fmt: skip
#: Trees to sweep, of 6 to 16 nodes: siblings beside a chain, wider ones, deeper ones.
SHAPES = ("2,1,1", "4,1,1", "4,2,1/16", "8x2", "4x3", "8x3/16", "4x5/16", "auto/16")
#: A copy of the head with random weights; how many are asked at a time, and how many questions.
WORTHLESS = Path("artifacts/worthless")
BATCHES = {"worthless_1": (1, 8), "worthless_8": (8, 64), "worthless_32": (32, 80)}
#: How often its engines are started: processes differ by more at the same work than the few percent looked for.
STARTS = 3
#: What --quick asks of the `bench` verbs: as many questions as the largest batch has.
QUICK = ["--limit", "8", "--max-tokens", "12"]


def main(
    target: Annotated[str, typer.Option(help="The demo's target, or another.")] = DEMO[0],
    head: Annotated[str, typer.Option(help="A converted head for it.")] = DEMO[1],
    prompts: Annotated[str, typer.Option(help="Questions to ask; the built-in ones if left out.")] = BUILTIN,
    beside: Annotated[list[str] | None, typer.Option(help="Another converted head, for `compare`; repeat.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; benchmarks/results.")] = None,
    history: Annotated[Path | None, typer.Option(help=f"File to append to; {HISTORY}.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Only this one of {', '.join(NAMES)}; repeat.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="On next to nothing; the repository is left alone.")] = False,
) -> None:
    """Measure everything again."""
    unknown = [name for name in only or () if name not in NAMES]
    if unknown:
        raise UsageError(f"--only {unknown[0]}", f"Expected: {', '.join(NAMES)}")
    folder = output or Path("artifacts/bench-quick" if quick else "benchmarks/results")
    history = history or (folder / "history.jsonl" if quick else HISTORY)
    before, console = load(), Console(highlight=False, markup=False)
    earlier = read(history)
    console.print(environment(before).model_dump(include={"hardware", "versions", "load_average"}))
    folder.mkdir(parents=True, exist_ok=True)
    others = beside or []
    if (target, head) == DEMO:
        others = [*prepare_demo(), *others]
    # The demo is of its own models, and as quick as it gets.
    usual = [name for name in NAMES if name != "demo" or ((target, head) == DEMO and not quick)]
    chosen = [name for name in NAMES if name in (only or usual)]
    if any(name in BATCHES for name in chosen):
        write_worthless(head, WORTHLESS)
    done: list[str] = []
    failed: list[str] = []
    stopped = False
    for name in chosen:
        command = [sys.executable, "-m", *arguments(name, target, head, prompts, folder, quick, others)]
        console.rule(name)
        try:
            (failed if run(command) else done).append(name)
            if name == "demo" and name in done:
                shutil.copy(WORK / "result.json", folder / "demo.json")
        except KeyboardInterrupt:
            failed, stopped = [n for n in chosen if n not in done], True
            break
    line = Line(
        environment=environment(before),
        target=target,
        head=head,
        head_sha256=head_sha256(head),
        quick=quick,
        failed=failed,
        figures=figures(folder, done),
    )
    if done:
        append(history, line)
        file = folder / "tables.md"
        file.write_text(tables(folder, done, line.environment, file.read_text() if file.exists() else ""))
        console.print(f"{file} has the tables, {history} one more line")
    if moved := [*changes(earlier, line)]:
        table = Table("figure", "before", "now", "", "since")
        for figure, date, old, new, apart in moved:
            table.add_row(figure, with_bounds(old, 3), with_bounds(new, 3), "CHANGED" if apart else "", date)
        console.print(table)
    if failed:
        raise HeadError(
            f"{'interrupted' if stopped else 'failed'}: {', '.join(failed)}", f"Done: {', '.join(done) or 'nothing'}"
        )


def arguments(
    name: str, target: str, head: str, prompts: str, folder: Path, quick: bool, beside: Sequence[str] = ()
) -> list[str]:
    """Module and arguments of one benchmark."""
    file = folder / f"{name}.json"
    if name == "demo":
        return ["vllm_eagle_plugin.cli", "demo", "--work", str(WORK)]
    if name == "tree_overhead":
        few = ["--context", "50", "--texts", "2", "--max-tokens", "12"] if quick else []
        asked = [f"--target={target}", f"--head={head}", f"--json={file}", *few]
        return ["vllm_eagle_plugin.benchmarks.tree_overhead", *asked]
    if name == "draft_step":
        few = ["--rounds", "1", "--width", "64"] if quick else []
        return ["vllm_eagle_plugin.benchmarks.draft_step", f"--json={file}", *few]
    if name == "convert_speed":
        few = ["--width", "1024", "--inner", "1024", "--vocab", "4096", "--rounds", "1"] if quick else []
        return ["vllm_eagle_plugin.benchmarks.convert_speed", f"--json={file}", *few]
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
    from ..conversion import convert
    from ..demo.run import shipped_head
    from ..demo.target import build_target

    target = build_target(Path(DEMO[0]))
    shipped = shipped_head()
    convert(shipped, str(target), Path(DEMO[1]), force=True)
    others = sorted(file.parent for file in shipped.parent.glob("*/config.json") if file.parent != shipped)
    for other in others:
        convert(other, str(target), WORK / "heads" / other.name, force=True)
    return [str(WORK / "heads" / other.name) for other in others]


def run(command: list[str]) -> int:
    """Run a command to its end, also when ctrl-C reaches both of us: it has something to write then."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


if __name__ == "__main__":
    run_function(main)
