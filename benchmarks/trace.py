"""`trace`: one answer, token by token: what was drafted, accepted, corrected, and how sure both models were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..demo.picture import Step as Drawn
from .environment import environment, load
from .host import TraceStep, accepted_drafts
from .methods import Method
from .prompts import Question
from .report.acceptance_page import environment_facts
from .report.page import Card, Cards, Part, Piece, Tokens, render
from .schema import SCHEMA_VERSION, Environment, Model
from .session import Sampling
from .worker import open_workers


class Draft(Model):
    """A drafted token that was verified."""

    token: int
    text: str
    accepted: bool
    trimmed: bool = Field(False, description="Behind the end of the answer: neither accepted nor rejected.")
    draft_probability: float | None = Field(description="The drafter's, at temperature 1; null without a model.")
    target_probability: float = Field(description="The target's, given the drafts before it, at temperature 1.")


class Emitted(Model):
    """A token of the answer."""

    token: int
    text: str
    how: Literal["accepted", "corrected", "bonus", "own"] = Field(
        description="accepted draft; the target's in place of a rejected draft; the target's behind accepted drafts "
        "only; the target's in a step without drafts."
    )
    depth: int | None = Field(None, description="Draft position of an accepted token, from 1.")
    target_probability: float | None = None


class TracedStep(Model):
    """One pass of the target."""

    emitted: list[Emitted]
    drafts: list[Draft]


class Trace(Model):
    """The result of `trace`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["trace"] = "trace"
    target: str
    speculative_config: dict[str, Any] | None
    prompt: str
    answer: str
    acceptance_length: float | None
    steps: list[TracedStep]
    environment: Environment


def trace(target: str, method: Method, prompt: str, sampling: Sampling, options: dict[str, Any], chat: bool) -> Trace:
    """Trace one answer.

    Raises:
        HeadError: the engine did not start, or cannot be watched.
    """
    from transformers import AutoTokenizer

    load_before = load()
    asked = (
        Question(0, "0", messages=({"role": "user", "content": prompt},)) if chat else Question(0, "0", prompt=prompt)
    )
    with open_workers(target, {method.name: method.speculative}, options) as workers:
        record, steps = workers[method.name].trace(asked, sampling)
    tokenizer = AutoTokenizer.from_pretrained(target)
    accepted, drafts = sum(record.accepted), len(record.accepted)
    return Trace(
        target=target,
        speculative_config=method.speculative,
        prompt=prompt,
        answer=record.text,
        acceptance_length=1 + accepted / drafts if drafts else None,
        steps=[explain(step, lambda token: tokenizer.decode([token])) for step in steps if step.emitted],
        environment=environment(load_before),
    )


def explain(step: TraceStep, decode: Callable[[int], str]) -> TracedStep:
    """A watched step in words: which draft was accepted, and how each token came."""
    accepted = accepted_drafts(step)
    probs: Sequence[float | None] = step.draft_probs or [None] * len(step.drafts)
    drafts = [
        Draft(
            token=token,
            text=decode(token),
            accepted=i < accepted,
            trimmed=i >= accepted and step.own_prob is None,  # the step did not come to a token of its own
            draft_probability=q,
            target_probability=p,
        )
        for i, (token, q, p) in enumerate(zip(step.drafts, probs, step.target_probs, strict=True))
    ]
    emitted = [
        Emitted(token=token, text=decode(token), how="accepted", depth=i + 1, target_probability=step.target_probs[i])
        for i, token in enumerate(step.emitted[:accepted])
    ]
    for token in step.emitted[accepted:]:
        how: Literal["own", "bonus", "corrected"]
        how = "own" if not drafts else "bonus" if accepted == len(drafts) else "corrected"
        emitted.append(Emitted(token=token, text=decode(token), how=how, depth=None, target_probability=step.own_prob))
    return TracedStep(emitted=emitted, drafts=drafts)


def is_rejected(draft: Draft) -> bool:
    """Whether the target decided against it, or against one before it."""
    return not draft.accepted and not draft.trimmed


def drawn(result: Trace) -> list[Drawn]:
    """The steps as the demo's picture wants them."""
    return [
        Drawn(
            [e.token for e in step.emitted if e.how == "accepted"],
            [e.token for e in step.emitted if e.how != "accepted"],
            [d.token for d in step.drafts if is_rejected(d)],
        )
        for step in result.steps
    ]


LEGEND = [
    ("accepted", "drafted and accepted"),
    ("corrected", "the target's, in place of a rejected draft"),
    ("bonus", "the target's, behind accepted drafts"),
    ("own", "the target's, nothing was drafted"),
    ("rejected", "drafted and rejected"),
]


def trace_page(result: Trace) -> str:
    """The answer as a page; probabilities on hover and focus."""
    pieces: list[Piece] = []
    for number, step in enumerate(result.steps):
        rejected = [_rejected(step, i) for i, draft in enumerate(step.drafts) if is_rejected(draft)]
        made = [Piece(_visible(e.text), e.how, _hint(number, step, e)) for e in step.emitted]
        own = next((i for i, e in enumerate(step.emitted) if e.how != "accepted"), None)
        if own is not None and rejected:  # rejected drafts stand in front of the token that replaced them
            made.insert(own, Piece("", "own", "", rejected))
        pieces += made
    tokens = sum(len(step.emitted) for step in result.steps)
    length = "none" if result.acceptance_length is None else f"{result.acceptance_length:.2f}"
    cards = [
        Card("acceptance length", length, "of this answer"),
        Card("tokens", str(tokens), f"in {len(result.steps)} steps of the target"),
    ]
    note = "Hover or tab to a token for both models' probabilities (at temperature 1)."
    parts: list[Part] = [
        Cards(cards),
        Tokens("The answer", pieces, LEGEND, note),
        environment_facts(result.environment),
    ]
    return render(f"Trace: {result.prompt[:80]}", result.target, parts)


def _hint(number: int, step: TracedStep, token: Emitted) -> str:
    draft = step.drafts[token.depth - 1] if token.depth else None
    how = {
        "accepted": f"accepted at depth {token.depth}",
        "corrected": "the target's own, in place of a rejected draft",
        "bonus": "the target's own, behind accepted drafts",
        "own": "the target's own, nothing was drafted",
    }[token.how]
    drafter = "" if draft is None or draft.draft_probability is None else f", drafter {draft.draft_probability:.1%}"
    target = "" if token.target_probability is None else f"; target {token.target_probability:.1%}"
    return f"step {number}: {how}{target}{drafter}"


def _rejected(step: TracedStep, i: int) -> Piece:
    draft = step.drafts[i]
    first = i == sum(d.accepted for d in step.drafts)
    why = "rejected" if first else "behind a rejected draft"
    drafter = "" if draft.draft_probability is None else f", drafter {draft.draft_probability:.1%}"
    return Piece(
        _visible(draft.text), "rejected", f"{why} at depth {i + 1}; target {draft.target_probability:.1%}{drafter}"
    )


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n") if text.strip("\n") or not text else "⏎" * len(text) + "\n"


def write_picture(result: Trace, console: Any, file: Path) -> None:
    """Print the answer in colours and save it as SVG."""
    from ..demo.picture import draw

    draw(console, Path(result.target), result.prompt, drawn(result), file)
