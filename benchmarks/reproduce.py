"""Every table and picture of the README's benchmarks, by one command: `python -m vllm_eagle_plugin.benchmarks.reproduce`.

Runs `bench acceptance`, `bench compare` and `bench sweep` as a user would, writes JSON, pages and pictures to
one folder, and appends a line of the figures that matter to `history.jsonl`, with hardware and versions, so
that a release can be told from the one before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import HeadError
from .environment import hardware, versions
from .schema import AcceptanceResult, read_result
from .speed import Compare, Sweep

ENGINE = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
K, TOKENS = 3, 128
#: Target and converted head of `vllm-eagle demo`.
DEMO = ("artifacts/demo/target", "artifacts/demo/head")
#: Arguments of each run behind the target and the head.
RUNS: dict[str, list[str]] = {
    "acceptance": ["-k", str(K), "--max-tokens", str(TOKENS), "--concurrency", "8"],
    "compare": ["--method", "ngram", "-k", str(K), "--max-tokens", "64", "--limit", "16"],
    "sweep": ["-k", "4", "--batch", "1", "--batch", "4", "--synthetic", "2.5", "--max-tokens", "48", "--limit", "8"],
}


def main(
    target: Annotated[str, typer.Option(help="The demo's target, or another.")] = DEMO[0],
    head: Annotated[str, typer.Option(help="A converted head for it.")] = DEMO[1],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("benchmarks/results"),
    only: Annotated[list[str] | None, typer.Option(help=f"Only this one of {', '.join(RUNS)}; repeat.")] = None,
) -> None:
    """Measure everything again."""
    console = Console(highlight=False, markup=False)
    console.print({**hardware(), **versions()})
    output.mkdir(parents=True, exist_ok=True)
    if (target, head) == DEMO:
        prepare_demo()
    for name in only or RUNS:
        if name not in RUNS:
            raise typer.BadParameter(f"{name} is none of {', '.join(RUNS)}")
        run(name, target, head, output)
    figures = headline(output)
    line = {"hardware": hardware(), "versions": versions(), "target": target, "head": head, **figures}
    with (output / "history.jsonl").open("a") as history:
        history.write(json.dumps(line) + "\n")
    console.print(figures)


def prepare_demo() -> None:
    """The demo's target and head, as `vllm-eagle demo` makes them."""
    from ..conversion import convert
    from ..demo.run import shipped_head
    from ..demo.target import build_target

    target = build_target(Path(DEMO[0]))
    convert(shipped_head(), str(target), Path(DEMO[1]), force=True)


def run(name: str, target: str, head: str, output: Path) -> None:
    """One benchmark, as a user would run it; its tables go to the terminal.

    Raises:
        HeadError: it failed.
    """
    files = [f"--html={output / name}.html", f"--plot={output / name}.png", f"--output={output / name}.json"]
    models = ["--target", target, "--head", head, "--engine-args", json.dumps(ENGINE)]
    command = [sys.executable, "-m", "vllm_eagle_plugin.cli", "bench", name, *models, *RUNS[name], *files]
    if subprocess.run(command).returncode:
        raise HeadError(f"bench {name} failed")


def headline(folder: Path) -> dict[str, Any]:
    """The figures of a folder of results that are worth following over time; those of missing runs are left out."""
    found: dict[str, Any] = {}
    if (file := folder / "acceptance.json").exists():
        result = read_result(file, AcceptanceResult)
        found["date"] = result.eagle.environment.date
        found["acceptance_length"] = result.eagle.acceptance.acceptance_length.model_dump()
        found["head_sha256"] = result.eagle.workload.head_sha256
    if (file := folder / "compare.json").exists():
        rows = read_result(file, Compare).rows
        found["speedup"] = {row.name: row.speedup.model_dump() for row in rows if row.speculative_config}
        found["plain_tokens_per_second"] = rows[0].tokens_per_second.value
    if (file := folder / "sweep.json").exists():
        swept = read_result(file, Sweep)
        found["cost"] = swept.cost.model_dump()
        found["held_out_errors"] = [prediction.error for prediction in swept.held_out]
    return found


if __name__ == "__main__":
    typer.run(main)
