"""The card beside a trained head: what it is, what it learned from, how it fares."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from .corpus import Corpus
from .export import next_command
from .files import replaced
from .recipe import Recipe
from .run_folder import Progress


def write_card(folder: Path, recipe: Recipe, target: str, corpus: Corpus, progress: Progress, options: Any) -> None:
    """Write `README.md` into `folder`, from what the run itself knows."""
    best = progress.best
    rates = ", ".join(f"{rate:.1%}" for rate in best["per_position_acceptance_rates"])
    chain = ", ".join(f"{rate:.1%}" for rate in best["agreement"])
    name = Path(target).name
    lines = [
        f"# {recipe.name} head for {name}",
        "",
        f"Recipe `{recipe.name}` (family `{recipe.family}`), in the layout its producer publishes; serve it with",
        f"`{next_command(recipe.family, folder.name, name, recipe.unroll.steps)}`.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {len(corpus.train):,} conversations, {corpus.answer_tokens:,} answer tokens the target wrote |",
        f"| training | {progress.step:,} steps, {progress.answer_tokens:,} answer tokens seen; "
        f"weights of step {progress.best_step:,} |",
        f"| time | {progress.seconds / 60:,.1f} minutes of steps |",
        f"| hardware | {_hardware()} |",
        f"| acceptance length, {len(corpus.held_out)} held-out conversations, {len(best['agreement'])} drafts, T = 0, "
        f"offline | {best['acceptance_length']:.2f} ({rates} by position) |",
        f"| chain agreement at every position | {chain} |",
        "",
    ]
    if options.command:
        lines += ["Made by", "", f"    {options.command}", ""]
    with replaced(folder / "README.md") as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = next((line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    return f"{model or platform.machine()}, {torch.get_num_threads()} threads, no GPU"


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
