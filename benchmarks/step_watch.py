"""What each step of one request drafted and emitted, and how sure both models were.

The engine must live in this process. vLLM has no public way to see what was rejected: for chains, methods of the
runner and of the two models are wrapped, which changes nothing they do; our tree runner tells its observers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor

from ..compat.running import drafter_of, runner_of
from ..errors import HeadError
from ..tree.observe import Tree


@dataclass
class TraceStep:
    """One step of one request.

    Attributes:
        drafts: [d] tokens that the step verified.
        draft_probs: [d] the drafter's probability of each, at temperature 1; empty where it has none (n-grams).
        target_probs: [d] the target's, each given the drafts that it continues.
        emitted: tokens that came out: accepted drafts, then the target's own.
        own_prob: the target's probability of its own token, at temperature 1; None where the step was trimmed.
        parents: [d] the draft that each continues, counted from 1; 0: the token before the step. None: each
            continues the one before it, a chain.
    """

    drafts: list[int]
    draft_probs: list[float]
    target_probs: list[float]
    emitted: list[int] = field(default_factory=list)
    own_prob: float | None = None
    parents: list[int] | None = None

    @property
    def tree(self) -> Tree:
        """The drafts as a tree, which a chain is too."""
        return Tree(self.drafts, list(range(len(self.drafts))) if self.parents is None else self.parents)

    @property
    def path(self) -> list[int]:
        """The drafts that were accepted and came out, counted from 1, in the order of the text."""
        drafts = list(zip(self.tree.parents, self.drafts, strict=True))
        path = [0]
        for token in self.emitted:
            if (path[-1], token) not in drafts:
                break
            path.append(drafts.index((path[-1], token)) + 1)
        return path[1:]


class StepWatch:
    """Writes down each step of the one request that runs while this context is open.

    Raises:
        HeadError: the runner has not the methods that are looked at.
    """

    def __init__(self, llm: Any) -> None:
        self.steps: list[TraceStep] = []
        self._drafts: tuple[list[int], list[float]] = ([], [])
        #: The target's probabilities [rows, V] in the step that runs.
        self._probs: Any = None
        self._draft_logits: list[Any] = []
        try:
            self._runner = runner_of(llm)
            self._runner.model.compute_logits  # noqa: B018 (asks whether it is there)
            self._drafter = drafter_of(llm)
        except AttributeError as error:
            raise HeadError(f"this vLLM's runner cannot be watched: {error}", "One of vLLM's was expected") from None

    def __enter__(self) -> StepWatch:
        runner, self._stack = self._runner, ExitStack()
        if _drafts_trees(runner):
            from ..tree.observe import observers

            observers.append(self)
            self._stack.callback(observers.remove, self)
            return self
        self._wrap(runner.model, "compute_logits", self._target)
        if hasattr(runner, "propose_draft_token_ids"):  # V1, whose drafters do not all have one `propose`
            self._wrap(runner, "propose_draft_token_ids", self._proposed)
        elif self._drafter is not None:
            self._wrap(self._drafter, "propose", self._proposed)
        draft_model: Any = getattr(self._drafter, "model", None)
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

    def drafted(self, request: str, tree: Tree, claims: list[float]) -> None:
        """As `tree.observe.Observer` says."""
        self._drafts = tree.tokens, claims

    def verified(self, request: str, tree: Tree, logits: Tensor) -> None:
        """As `tree.observe.Observer` says."""
        (drafts, claims), self._drafts = self._drafts, ([], [])
        known = drafts[: len(tree.tokens)] == tree.tokens  # else they are vLLM's own, close to the longest length
        self._add(tree.tokens, claims[: len(tree.tokens)] if known else [], logits, tree.parents)

    def _target(self, logits: Tensor, *args: Any) -> None:
        drafts, probs = self._drafts
        seen = min(len(drafts), len(logits) - 1)  # vLLM may verify fewer than were drafted
        self._add(drafts[:seen], probs[:seen], logits)

    def _add(self, drafts: list[int], probs: list[float], logits: Tensor, parents: list[int] | None = None) -> None:
        self._probs = logits.float().softmax(-1)
        rows = range(len(drafts)) if parents is None else parents
        target = [float(self._probs[row, token]) for row, token in zip(rows, drafts, strict=True)]
        self.steps.append(TraceStep(drafts, probs, target, parents=parents))

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
            path = step.path
            if len(path) < len(tokens):
                step.own_prob = float(self._probs[path[-1] if path else 0, tokens[len(path)]])


def _drafts_trees(runner: Any) -> bool:
    """Whether it is ours, for trees and adaptive chains."""
    from ..tree.host_v1 import TreeRunner

    return isinstance(runner, TreeRunner)
