"""Trained heads side by side: `python -m vllm_eagle_plugin.benchmarks.heads HEAD... --target TARGET -o FOLDER`.

For every head, at every k, greedy and sampled: acceptance length in vLLM's scheduler, milliseconds of drafting,
and speed against plain decoding of the same questions in the same run. Each measurement is a `bench compare`,
kept in FOLDER/runs as soon as it is there; run again, the command goes on with what is missing. One JSON file,
one table and one picture of all of them follow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field
from rich.console import Console

from ..errors import HeadError, UsageError
from .compare import compare
from .methods import Method, check_head, engine_options, head_sha256
from .prompts import fingerprint, first_turns, read_prompts
from .report.terminal import number
from .schema import SCHEMA_VERSION, Environment, Figure, Model, read_result
from .session import Sampling
from .speed import Compare

#: Most engines that are open at a time, plain decoding's included.
TOGETHER = 4


class HeadRow(Model):
    """One head at one k and temperature."""

    head: str
    parameters: int = Field(description="Numbers in the head's own weight files.")
    num_speculative_tokens: int
    temperature: float
    acceptance_length: Figure
    per_position: list[Figure]
    draft_ms: float | None = Field(description="Mean milliseconds of drafting in a decode step; null if not seen.")
    speedup: Figure = Field(description="Tokens per second over plain decoding's, in the same run.")


class Heads(Model):
    """What the command writes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["heads"] = "heads"
    target: str
    prompts: str
    prompts_sha256: str
    questions: int
    max_tokens: int
    concurrency: int
    engine: dict[str, Any]
    environments: list[Environment] = Field(description="Of each run; heads may have been added later.")
    rows: list[HeadRow]


def main(
    heads: Annotated[list[Path], typer.Argument(help="Converted heads, or Medusa heads of `train head`.")],
    target: Annotated[str, typer.Option(help="The model that decides: a folder or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    prompts: Annotated[str, typer.Option(help="JSONL, ShareGPT JSON or text file, or `builtin`.")] = "builtin",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    k: Annotated[list[int] | None, typer.Option("-k", min=1, help="Drafts per step; repeat. Default: 1 to 6.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(min=0, help="Repeat. Default: 0 and 1.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 256,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 1,
    engine_args: Annotated[str | None, typer.Option(help="vLLM engine arguments as JSON.")] = None,
) -> None:
    """Measure what is missing, and write heads.json, heads.md and heads.svg."""
    named = {head.name: head for head in heads}
    if len(named) < len(heads):
        raise UsageError("two heads of one name", "Folders named as the table is to call them were expected")
    ks, temperatures = sorted(set(k or range(1, 7))), sorted(set(temperature or (0.0, 1.0)))
    for head in heads:
        check_head(str(head))
        limit_of = _config(head).get("num_heads", math.inf)
        if ks[-1] > limit_of:
            raise UsageError(f"k = {ks[-1]} for {head}", f"It drafts {limit_of} tokens at most", "Pass smaller -k")
    questions = first_turns(read_prompts(prompts, limit))
    options = engine_options(engine_args)
    (output / "runs").mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, markup=False)
    found: list[tuple[str, Path, Compare]] = []
    for name, head in named.items():
        weights = (head_sha256(str(head)) or "hub")[:8]  # a head that was trained on is measured anew
        for heat in temperatures:
            for some in _groups(ks):
                file = output / "runs" / f"{name}-{weights}-T{heat:g}-k{'-'.join(map(str, some))}.json"
                if not file.exists():
                    console.print(f"{name}, T = {heat:g}, k = {', '.join(map(str, some))}")
                    sampling = Sampling(heat, max_tokens)
                    methods = [method(head, at) for at in some]
                    run = compare(target, methods, questions, prompts, sampling, concurrency, 1, options)
                    if run.partial:
                        raise HeadError(f"the run ended early: {run.partial.rstrip('.')}", "", "Run the command again")
                    file.write_text(run.model_dump_json() + "\n")
                found.append((name, head, _checked(file, target, fingerprint(list(questions)), max_tokens, heat)))
    result = summarise(found, concurrency)
    (output / "heads.json").write_text(result.model_dump_json(indent=1) + "\n")
    (output / "heads.md").write_text(table(result))
    draw(result, output / "heads.svg")
    console.print(table(result))


def method(head: Path, k: int) -> Method:
    """The head as a way to decode."""
    config: dict[str, Any] = {"model": str(head), "num_speculative_tokens": k}
    if _config(head).get("model_type") == "medusa":  # vLLM's own; of the others the plugin knows the method
        config["method"] = "medusa"
    return Method(f"{head.name}, k={k}", config)


def parameters(head: Path) -> int:
    """Numbers in a head's weight files, token maps and copies of the target's lm_head (Medusa) left out."""
    from safetensors import safe_open

    total, copied = 0, _config(head).get("original_lm_head", False)
    for file in sorted(head.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, it is no dictionary
                part = opened.get_slice(name)
                counts = part.get_dtype() in ("BF16", "F16", "F32") and not (copied and name.startswith("lm_head"))
                total += math.prod(part.get_shape()) if counts else 0
    return total


def summarise(found: Sequence[tuple[str, Path, Compare]], concurrency: int) -> Heads:
    """The rows of all runs, a run being of one head (name, folder) at one temperature."""
    rows = []
    for name, head, run in found:
        count = parameters(head)
        for way in run.rows:
            if way.acceptance is None:
                continue
            rows.append(
                HeadRow(
                    head=name,
                    parameters=count,
                    num_speculative_tokens=way.num_speculative_tokens,
                    temperature=run.temperature,
                    acceptance_length=way.acceptance.acceptance_length,
                    per_position=way.acceptance.per_position,
                    draft_ms=way.step_ms.draft if way.step_ms else None,
                    speedup=way.speedup,
                )
            )
    first = found[0][2]
    return Heads(
        target=first.target,
        prompts=first.prompts,
        prompts_sha256=first.prompts_sha256,
        questions=first.questions,
        max_tokens=first.max_tokens,
        concurrency=concurrency,
        engine=first.engine,
        environments=[run.environment for _, _, run in found],
        rows=rows,
    )


def table(result: Heads) -> str:
    """Acceptance length by k, and what it bought, as markdown."""
    ks = sorted({row.num_speculative_tokens for row in result.rows})
    middle = 3 if 3 in ks else ks[len(ks) // 2]
    names = ["head", "parameters", "T", *(f"k = {k}" for k in ks), f"draft ms, k = {middle}", "speedup, best k"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for (head, heat), by_k in grouped(result).items():
        best = max(by_k.values(), key=lambda row: row.speedup.value or 0)
        lengths = [number(by_k[k].acceptance_length) if k in by_k else "-" for k in ks]
        speed = f"{number(best.speedup)} (k = {best.num_speculative_tokens})"
        draft = number(Figure(value=by_k[middle].draft_ms), 1) if middle in by_k else "-"
        size = f"{best.parameters / 1e6:.1f} M"
        lines.append("| " + " | ".join([f"`{head}`", size, f"{heat:g}", *lengths, draft, speed]) + " |")
    return "\n".join(lines) + "\n"


def grouped(result: Heads) -> dict[tuple[str, float], dict[int, HeadRow]]:
    """Rows by head and temperature, then by k."""
    groups: dict[tuple[str, float], dict[int, HeadRow]] = {}
    for row in result.rows:
        groups.setdefault((row.head, row.temperature), {})[row.num_speculative_tokens] = row
    return groups


def draw(result: Heads, picture: Path) -> None:
    """Acceptance length, and speed against plain decoding, over k; dashed lines are of sampled answers."""
    from .report.plots import new_figure, save

    figure, axes = new_figure(2, [3.2, 3.2])
    heads = list(dict.fromkeys(row.head for row in result.rows))
    for (head, heat), by_k in grouped(result).items():
        ks = sorted(by_k)
        colour, line = f"C{heads.index(head)}", "--" if heat else "-"
        label = f"{head}, T = {heat:g}"
        lengths = [by_k[k].acceptance_length.value for k in ks]
        axes[0].plot(ks, lengths, line, marker="o", markersize=3, color=colour, label=label)
        axes[1].plot(ks, [by_k[k].speedup.value for k in ks], line, marker="o", markersize=3, color=colour)
    axes[0].set(title="acceptance length")
    axes[1].set(title="tokens per second over plain decoding's", xlabel="drafts per step, k")
    axes[1].axhline(1, color="grey", linewidth=0.8)
    axes[0].legend(fontsize=7, ncols=2)
    save(figure, picture)


def _groups(ks: Sequence[int]) -> list[list[int]]:
    size = TOGETHER - 1
    return [list(ks[at : at + size]) for at in range(0, len(ks), size)]


def _config(head: Path) -> dict[str, Any]:
    try:
        found = json.loads((head / "config.json").read_text())
    except (OSError, ValueError):
        return {}  # a head on the hub, or one that `check_head` refuses
    return found if isinstance(found, dict) else {}


def _checked(file: Path, target: str, questions: str, max_tokens: int, heat: float) -> Compare:
    """A kept run, if it is of these questions."""
    run = read_result(file, Compare)
    if (run.target, run.prompts_sha256, run.max_tokens, run.temperature) != (target, questions, max_tokens, heat):
        raise UsageError(f"{file} is of another target or other questions", "", "Choose another --output, or remove it")
    return run


if __name__ == "__main__":
    typer.run(main)
