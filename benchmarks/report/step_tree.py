"""The tree of one traced step, as it is to be drawn: on a page, or by matplotlib."""

from __future__ import annotations

from dataclasses import replace

from ..trace import Trace, TracedStep
from .page import Branch


def numbered_tree(result: Trace, number: int) -> Branch:
    """The tree of the answer's step `number`."""
    return step_tree(result.steps[number], result.steps[number - 1].emitted[-1].text if number else "prompt")


def step_tree(step: TracedStep, before: str) -> Branch:
    """The drafts of a step below the token `before` it, with what the target said itself at the accepted path's end.

    Siblings stand by the head's probability: the first of each is what a chain would have drafted.
    """
    own = [
        Branch(_word(e.text), e.how, None, e.target_probability, on_path=True)
        for e in step.emitted
        if e.how != "accepted"
    ]

    def below(node: int) -> list[Branch]:
        numbers = [i for i, draft in enumerate(step.drafts, 1) if draft.parent == node]
        numbers.sort(key=lambda i: -(step.drafts[i - 1].draft_probability or 0.0))
        return _passed([drawn(i) for i in numbers] + (own if node == step.end else []))

    def drawn(node: int) -> Branch:
        draft = step.drafts[node - 1]
        tone = "accepted" if draft.accepted else "trimmed" if draft.trimmed else "rejected"
        q, p = draft.draft_probability, draft.target_probability
        return Branch(_word(draft.text), tone, q, p, below(node), draft.accepted)

    return Branch(_word(before), "root", None, None, below(0), True)


def _word(text: str) -> str:
    """A token's text on one line, with something to see in it."""
    return (text if text.strip() else text.replace(" ", "␣")).replace("\n", "⏎")


def _passed(siblings: list[Branch]) -> list[Branch]:
    """Those above the one that the path goes on to are passed by it."""
    on_path = next((i for i, branch in enumerate(siblings) if branch.on_path), 0)
    return [replace(branch, passed=i < on_path) for i, branch in enumerate(siblings)]
