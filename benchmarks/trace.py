"""`trace`: one answer, token by token: what was drafted, accepted, corrected, and how sure both models were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from ..tree import SECTION
from .environment import environment, load
from .methods import Method
from .prompts import Question
from .schema import SCHEMA_VERSION, Environment, Model
from .session import Sampling
from .step_watch import TraceStep
from .worker import open_workers


class Draft(Model):
    """A drafted token that was verified."""

    token: int
    text: str
    parent: int = Field(description="The draft of this step that it continues, from 1; 0: the token before the step.")
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
    draft: int | None = Field(None, description="Which draft of the step an accepted token is, from 1.")
    target_probability: float | None = None


class TracedStep(Model):
    """One pass of the target."""

    emitted: list[Emitted]
    drafts: list[Draft]

    @property
    def end(self) -> int:
        """The last draft that was accepted and came out, from 1; 0: none was."""
        return next((e.draft for e in reversed(self.emitted) if e.draft), 0)


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

    @property
    def drafts_trees(self) -> bool:
        """Whether trees were asked for."""
        return bool(((self.speculative_config or {}).get(SECTION) or {}).get("tree"))


def trace(target: str, method: Method, prompt: str, sampling: Sampling, options: dict[str, Any], chat: bool) -> Trace:
    """Trace one answer.

    Raises:
        HeadError: the engine did not start, or cannot be watched.
    """
    from transformers import AutoTokenizer

    load_before = load()
    options = {"async_scheduling": False, **options}  # or tokens would come out after the next step's drafts
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
    """A watched step in words: which drafts were accepted, and how each token came."""
    path, tree = step.path, step.tree
    probs: Sequence[float | None] = step.draft_probs or [None] * len(step.drafts)
    end = path[-1] if path else 0
    drafts = [
        Draft(
            token=token,
            text=decode(token),
            parent=tree.parents[node - 1],
            accepted=node in path,
            # The step did not come to a token of its own, and this one stands behind where it stopped.
            trimmed=step.own_prob is None and node != end and end in _above(node, tree.parents),
            draft_probability=q,
            target_probability=p,
        )
        for node, (token, q, p) in enumerate(zip(step.drafts, probs, step.target_probs, strict=True), 1)
    ]
    emitted = [
        Emitted(
            token=step.drafts[node - 1],
            text=drafts[node - 1].text,
            how="accepted",
            depth=depth,
            draft=node,
            target_probability=step.target_probs[node - 1],
        )
        for depth, node in enumerate(path, 1)
    ]
    for token in step.emitted[len(path) :]:
        how: Literal["own", "bonus", "corrected"]
        how = "own" if not drafts else "corrected" if end in tree.parents else "bonus"
        emitted.append(
            Emitted(token=token, text=decode(token), how=how, depth=None, draft=None, target_probability=step.own_prob)
        )
    return TracedStep(emitted=emitted, drafts=drafts)


def _above(node: int, parents: Sequence[int]) -> list[int]:
    """The nodes that a node continues, up to the root, 0."""
    found = []
    while node:
        node = parents[node - 1]
        found.append(node)
    return found
