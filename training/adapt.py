"""`train adapt`: a trained head learns a target's own words on a user's own prompts, and what it knew survives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..targets.target import Target, read_target
from .agreement import Agreement, measure
from .corpus import Conversation, read_corpus
from .data import DataSettings, DataWriter
from .display import data_progress
from .files import write_json
from .heads import aux_layers
from .recipe import Recipe, load_recipe
from .run import Options
from .teacher import Teacher, identify
from .trainer import train
from .warm_start import Start, fitted, read_start

#: Of the answer tokens, the share that is the target's answers to its own questions: what a head knows of other
#: traffic is kept by going on with it.
GENERAL_SHARE = 0.25
#: Resamples of the questions for an interval.
RESAMPLES = 2000
#: How a head that is trained already is trained on: a low peak rate, so that nothing is lost in the first steps.
CHANGES = ("optimiser.learning_rate=7e-4", "evaluate_every=50", "held_out=64", "patience=4")


@dataclass(frozen=True)
class Gain:
    """Held-out acceptance length before and after, and their difference with a 95% interval over conversations."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    conversations: int

    @property
    def paid(self) -> bool:
        return self.low > 0


@dataclass(frozen=True)
class Adapted:
    """What adapting came to, on the user's prompts and on general ones."""

    output: Path
    finished: bool
    special: Gain
    general: Gain | None

    def as_json(self) -> dict[str, Any]:
        general = None if self.general is None else asdict(self.general)
        shown = {"output": str(self.output), "finished": self.finished, "paid": self.special.paid}
        return {**shown, "special": asdict(self.special), "general": general}


def adapt(
    head: str,
    target_name: str,
    output: Path,
    *,
    prompts: Path | None = None,
    tokens: int = 200_000,
    changes: list[str] | None = None,
    options: Options | None = None,
    reading: Any = None,
    data_options: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Adapted:
    """Train `head` further on what its target answers, and measure what it brought; goes on where it stopped.

    prompts: the user's own (JSONL or text); without them the target asks itself.
    tokens: answer tokens to learn from, all together. `changes` are settings of the recipe, `reading` what the head's
    files do not say (`convert`'s options).

    Raises:
        HeadError: the head, its target or the data do not fit.
        UsageError: a setting is wrong.
    """
    target = read_target(target_name)
    start = read_start(head, target, reading)
    recipe = fitted(load_recipe(start.family, [*CHANGES, *(changes or [])]), start.head.config)
    folders = {"general": output / "data" / "general"}
    shares = {"general": tokens}
    if prompts is not None:
        folders = {"special": output / "data" / "special", **folders}
        shares = {"special": round(tokens * (1 - GENERAL_SHARE)), "general": round(tokens * GENERAL_SHARE)}
    for name, folder in folders.items():
        say(f"{name} answers: {folder}")
        settings = DataSettings(prompts=str(prompts) if name == "special" else None, **(data_options or {}))
        shards = list(data_progress(DataWriter(target_name, folder, settings).write(shares[name]), shares[name]))
        if not shards:
            raise UsageError(f"{prompts} holds no prompts", "At least one was expected", "Give another file")
    done = train(recipe, target_name, list(folders.values()), output / "head", options or Options(), start)
    held_out = {n: read_corpus([f], identify(target), recipe.held_out).held_out for n, f in folders.items()}
    found = compare(start, output / "head", target, recipe, held_out, (options or Options()).draft_tokens)
    first = "special" if prompts is not None else "general"
    adapted = Adapted(output / "head", done.finished, found[first], found["general"] if first == "special" else None)
    write_json(output / "adapted.json", adapted.as_json())
    return adapted


def compare(
    start: Start, folder: Path, target: Target, recipe: Recipe, held_out: dict[str, list[Conversation]], steps: int
) -> dict[str, Gain]:
    """The head before and the one in `folder`, on each set of held-out conversations."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    teacher = Teacher(target, aux_layers(start.head.config), dtype, device)
    steps = start.head.config.max_draft_tokens or steps
    measured: list[dict[str, Agreement]] = []
    for head in (start.head, read_start(str(folder), target).head):
        head = head.to(device)
        head.attach_target(teacher.embedding, teacher.lm_head, teacher.lm_head_bias)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            measured.append(
                {n: measure(head, teacher, rows, steps, recipe.batch.length) for n, rows in held_out.items()}
            )
    return {name: gain(measured[0][name], measured[1][name]) for name in held_out}


def gain(before: Agreement, after: Agreement) -> Gain:
    """The difference of two measurements of the same conversations, these resampled together."""
    rows = np.array([before.drafts, before.accepted, after.drafts, after.accepted], float)
    chance = np.random.default_rng(0)
    drawn = rows[:, chance.integers(0, rows.shape[1], (RESAMPLES, rows.shape[1]))].sum(-1)
    differences = drawn[3] / drawn[2].clip(1) - drawn[1] / drawn[0].clip(1)
    low, high = np.percentile(differences, [2.5, 97.5])
    difference = after.acceptance_length - before.acceptance_length
    return Gain(before.acceptance_length, after.acceptance_length, difference, float(low), float(high), rows.shape[1])


def sentences(adapted: Adapted) -> list[str]:
    """What it came to, in words."""
    lines = [_sentence("your prompts" if adapted.general else "held-out answers", adapted.special)]
    if adapted.general is not None:
        lines.append(_sentence("general prompts", adapted.general))
    if not adapted.special.paid:
        lines.append("Adapting did not pay: the interval holds no gain. More tokens, or other prompts, may.")
    return lines


def _sentence(where: str, found: Gain) -> str:
    return (
        f"acceptance length on {where}: {found.before:.3f} before, {found.after:.3f} after, "
        f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f}, {found.conversations} conversations)"
    )
