"""What the comparison of heads writes: its models, table and picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .report.terminal import number
from .schema import SCHEMA_VERSION, AcceptanceResult, Environment, Figure, Model
from .session import Sampling
from .speed import Compare


class HeadRow(Model):
    """One head at one k and temperature."""

    head: str
    parameters: int = Field(description="Numbers in the head's own weight files.")
    num_speculative_tokens: int
    temperature: float
    acceptance_length: Figure
    per_position: list[Figure]
    draft_ms: float | None = Field(
        description="Mean milliseconds of drafting in a step of one request; null: not seen."
    )
    speedup: Figure | None = Field(description="Tokens per second over plain decoding's; null: not measured.")


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
    speed_questions: int = Field(description="Asked one at a time, of speed_tokens each, greedily.")
    speed_tokens: int
    environments: list[Environment] = Field(description="Of each run; heads may have been added later.")
    rows: list[HeadRow]


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


def summarise(
    heads: dict[str, Path],
    lengths: dict[str, list[AcceptanceResult]],
    speeds: dict[str, Compare],
    speed_sampling: Sampling,
) -> Heads:
    """The rows of all runs, by name of the head."""
    rows = []
    for name, head in heads.items():
        by_k = {row.num_speculative_tokens: row for row in speeds[name].rows} if name in speeds else {}
        count = parameters(head)
        for run in sorted(lengths[name], key=lambda run: run.eagle.workload.temperature):
            work, found = run.eagle.workload, run.eagle.acceptance
            greedy = None if work.temperature else by_k.get(work.num_speculative_tokens)
            rows.append(
                HeadRow(
                    head=name,
                    parameters=count,
                    num_speculative_tokens=work.num_speculative_tokens,
                    temperature=work.temperature,
                    acceptance_length=found.acceptance_length,
                    per_position=found.per_position,
                    draft_ms=greedy.step_ms.draft if greedy and greedy.step_ms else None,
                    speedup=greedy.speedup if greedy else None,
                )
            )
    runs = [run for of_head in lengths.values() for run in of_head]
    work = runs[0].eagle.workload
    return Heads(
        target=work.target,
        prompts=work.prompts,
        prompts_sha256=work.prompts_sha256,
        questions=runs[0].completed,
        max_tokens=work.max_tokens,
        concurrency=work.concurrency,
        engine=work.engine,
        speed_questions=max((run.questions for run in speeds.values()), default=0),
        speed_tokens=speed_sampling.max_tokens,
        environments=[*(run.eagle.environment for run in runs), *(run.environment for run in speeds.values())],
        rows=rows,
    )


def table(result: Heads) -> str:
    """Acceptance length by k, and what it bought, as markdown."""
    ks = sorted({row.num_speculative_tokens for row in result.rows})
    middle = 3 if 3 in ks else ks[len(ks) // 2]
    names = ["head", "parameters", "T", *(f"k = {k}" for k in ks), f"draft ms, k = {middle}", "speedup, best k"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for (head, heat), by_k in grouped(result).items():
        timed = {k: row.speedup for k, row in by_k.items() if row.speedup}
        best = max(timed, key=lambda k: timed[k].value or 0) if timed else 0
        lengths = [number(by_k[k].acceptance_length) if k in by_k else "-" for k in ks]
        speed = f"{number(timed[best])} (k = {best})" if timed else ""
        drafting = by_k[middle].draft_ms if middle in by_k else None
        draft = "" if drafting is None else f"{drafting:.1f}"
        size = f"{next(iter(by_k.values())).parameters / 1e6:.1f} M"
        lines.append("| " + " | ".join([f"`{head}`", size, f"{heat:g}", *lengths, draft, speed]) + " |")
    return "\n".join(lines) + "\n"


def grouped(result: Heads) -> dict[tuple[str, float], dict[int, HeadRow]]:
    """Rows by head and temperature, then by k."""
    groups: dict[tuple[str, float], dict[int, HeadRow]] = {}
    for row in result.rows:
        groups.setdefault((row.head, row.temperature), {})[row.num_speculative_tokens] = row
    return groups


def draw(result: Heads, picture: Path) -> None:
    """Acceptance length over k, dashed where answers are sampled, and speed against plain decoding."""
    from .report.plots import new_figure, save

    timed = any(row.speedup for row in result.rows)
    figure, axes = new_figure(1 + timed, [3.2] * (1 + timed))
    heads = list(dict.fromkeys(row.head for row in result.rows))
    for (head, heat), by_k in grouped(result).items():
        ks, colour, line = sorted(by_k), f"C{heads.index(head)}", "--" if heat else "-"
        label = f"{head}, T = {heat:g}"
        lengths = [by_k[k].acceptance_length.value for k in ks]
        axes[0].plot(ks, lengths, line, marker="o", markersize=3, color=colour, label=label)
        speeds = {k: row.speedup.value for k, row in by_k.items() if row.speedup}
        if speeds:
            axes[1].plot(list(speeds), list(speeds.values()), line, marker="o", markersize=3, color=colour)
    axes[0].set(title="acceptance length", xlabel="drafts per step, k")
    axes[0].legend(fontsize=7, ncols=2)
    if timed:
        axes[1].set(title="tokens per second over plain decoding's, one request at a time", xlabel="drafts per step, k")
        axes[1].axhline(1, color="grey", linewidth=0.8)
    save(figure, picture)


def head_config(head: Path) -> dict[str, Any]:
    """config.json of a head; empty for one on the hub."""
    try:
        found = json.loads((head / "config.json").read_text())
    except (OSError, ValueError):
        return {}  # a head on the hub, or one that `check_head` refuses
    return found if isinstance(found, dict) else {}
