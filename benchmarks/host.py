"""What a running engine drafted, verified and rejected, step by step.

vLLM has no public way to see it, so methods of the runner and of the two models are wrapped while one request
runs. Nothing they do is changed; a vLLM without them gives no traces, and everything else still works.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from ..errors import HeadError
from ..running import runner_of


@dataclass
class TraceStep:
    """One step of one request.

    Attributes:
        drafts: [d] tokens that the step verified.
        draft_probs: [d] the drafter's probability of each, at temperature 1; empty where it has none (n-grams).
        target_probs: [d] the target's, each given the drafts before it.
        emitted: tokens that came out: accepted drafts, then the target's own.
        own_prob: the target's probability of its own token, at temperature 1; None where the step was trimmed.
    """

    drafts: list[int]
    draft_probs: list[float]
    target_probs: list[float]
    emitted: list[int] = field(default_factory=list)
    own_prob: float | None = None


class StepWatch:
    """Writes down each step of the one request that runs while this context is open.

    Raises:
        HeadError: the runner has not the methods that are looked at.
    """

    def __init__(self, llm: Any) -> None:
        self.steps: list[TraceStep] = []
        self._drafts: tuple[list[int], list[float]] = ([], [])
        self._logits: Any = None
        self._draft_logits: list[Any] = []
        try:
            self._runner = runner_of(llm)
            self._runner.model.compute_logits  # noqa: B018 (asks whether it is there)
            self._runner.propose_draft_token_ids  # noqa: B018
        except AttributeError as error:
            raise HeadError(
                f"this vLLM's runner cannot be watched: {error}", "The V1 model runner was expected"
            ) from None

    def __enter__(self) -> StepWatch:
        runner, self._stack = self._runner, ExitStack()
        self._wrap(runner.model, "compute_logits", self._target)
        if getattr(runner, "drafter", None) is not None:
            self._wrap(runner, "propose_draft_token_ids", self._proposed)
        draft_model: Any = getattr(getattr(runner, "drafter", None), "model", None)
        if callable(getattr(draft_model, "compute_logits", None)):
            self._wrap(draft_model, "compute_logits", lambda logits, hidden: self._draft_logits.append(logits))
            if hasattr(draft_model, "get_top_tokens"):  # a shortcut past the logits: have them computed after all
                self._wrap(draft_model, "get_top_tokens", lambda tokens, hidden: draft_model.compute_logits(hidden))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _wrap(self, owner: Any, name: str, seen: Callable[..., Any]) -> None:
        call = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            seen(result, *args)
            return result

        # Into the instance's own dictionary: torch modules would register nothing else there.
        self._stack.enter_context(mock.patch.dict(vars(owner), {name: wrapped}))

    def _target(self, logits: Any, *args: Any) -> None:
        drafts, probs = self._drafts
        rows = logits.float().softmax(-1)
        seen = min(len(drafts), len(rows) - 1)  # vLLM may verify fewer than were drafted
        self._logits = rows
        target = [float(rows[i, token]) for i, token in enumerate(drafts[:seen])]
        self.steps.append(TraceStep(drafts[:seen], probs[:seen], target))

    def _proposed(self, drafts: Any, *args: Any) -> None:
        rows = drafts.tolist() if hasattr(drafts, "tolist") else drafts
        tokens = [int(token) for token in rows[0]] if rows else []
        probs = []
        if len(self._draft_logits) == len(tokens):
            probs = [
                float(logits[0].float().softmax(-1)[token])
                for logits, token in zip(self._draft_logits, tokens, strict=True)
            ]
        self._drafts, self._draft_logits = (tokens, probs), []

    def emitted(self, outputs: list[Any]) -> None:
        """What the step that was just watched put out."""
        for output in outputs:
            tokens = list(output.outputs[0].token_ids)
            if not tokens or not self.steps:
                continue
            step = self.steps[-1]
            step.emitted = tokens
            own = accepted_drafts(step)
            if own < len(tokens):
                step.own_prob = float(self._logits[own, tokens[own]])


def accepted_drafts(step: TraceStep) -> int:
    """How many of the emitted tokens are accepted drafts."""
    accepted = 0
    for draft, token in zip(step.drafts, step.emitted, strict=False):
        if draft != token:
            break
        accepted += 1
    return accepted
