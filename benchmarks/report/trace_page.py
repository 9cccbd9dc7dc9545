"""The answer of a `trace` as a page, in the terminal, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..trace import Draft, Emitted, Trace, TracedStep
from .acceptance_page import environment_facts
from .answer_picture import Step as Drawn
from .page import Card, Cards, Figure, Part, Piece, Report, Tokens, Trees
from .step_tree import numbered_tree

LEGEND = [
    ("accepted", "drafted and accepted"),
    ("corrected", "the target's, in place of a rejected draft"),
    ("bonus", "the target's, behind accepted drafts"),
    ("own", "the target's, nothing was drafted"),
    ("rejected", "drafted and rejected"),
]


def trace_report(result: Trace) -> Report:
    """The answer; probabilities on hover and focus, and the tree of the step that is chosen."""
    tokens = sum(len(step.emitted) for step in result.steps)
    drafted = [step for step in result.steps if step.drafts]
    length = "none" if result.acceptance_length is None else f"{result.acceptance_length:.2f}"
    cards = [
        Card("acceptance length", length, "of this answer"),
        Card("tokens", str(tokens), f"in {len(result.steps)} steps of the target"),
    ]
    note = "Hover or tab to a token for both models' probabilities (at temperature 1)."
    trees, legend = list[Part](), LEGEND
    if result.drafts_trees:
        nodes = sum(len(step.drafts) for step in drafted)
        cards.append(Card("drafted", str(nodes), f"in {len(drafted)} trees"))
        note = "Click a token for the tree of its step, or use the arrow keys: left and right by token, up and down "
        note += "by step. Probabilities are at temperature 1."
        trees, legend = [_trees(result)], LEGEND[:-1]
    answer = Tokens("The answer", _pieces(result), legend, note)
    parts: list[Part] = [Cards(cards), answer, *trees, environment_facts(result.environment)]
    verdict = f"{tokens} tokens in {len(result.steps)} steps of the target; acceptance length {length}."
    return Report(f"Trace: {result.prompt[:80]}", verdict, result.target, parts)


def drawn(result: Trace) -> list[Drawn]:
    """The steps as the demo's picture wants them. Of a tree's rejected drafts only the head's favourite where the
    path ended: what the target said something else in place of."""
    return [
        Drawn(
            [e.token for e in step.emitted if e.how == "accepted"],
            [e.token for e in step.emitted if e.how != "accepted"],
            [d.token for d in (_denied(step) if result.drafts_trees else step.drafts) if _is_rejected(d)],
        )
        for step in result.steps
    ]


def write_picture(result: Trace, console: Any, file: Path) -> None:
    """Print the answer in colours and save it as SVG."""
    from .answer_picture import draw

    draw(console, Path(result.target), result.prompt, drawn(result), file)


def _pieces(result: Trace) -> list[Piece]:
    pieces: list[Piece] = []
    for number, step in enumerate(result.steps):
        opens = number if result.drafts_trees else None
        made = [Piece(_visible(e.text), e.how, _hint(number, step, e), opens=opens) for e in step.emitted]
        own = next((i for i, e in enumerate(step.emitted) if e.how != "accepted"), None)
        rejected = [_rejected(step, i) for i, draft in enumerate(step.drafts) if _is_rejected(draft)]
        if own is not None and rejected and not result.drafts_trees:
            made.insert(own, Piece("", "own", "", rejected))  # in front of the token that replaced them
        pieces += made
    return pieces


def _trees(result: Trace) -> Trees:
    figures = [Figure(i, _caption(i, step), numbered_tree(result, i)) for i, step in enumerate(result.steps)]
    note = "Each draft with the head's probability and the target's, both given the drafts before it. "
    note += "A node's continuations stand likeliest first, so that the top row is what a chain would have drafted."
    return Trees("The trees", figures, LEGEND[-1:], note)


def _caption(number: int, step: TracedStep) -> str:
    if not step.drafts:
        return f"Step {number}: nothing was drafted."
    accepted = sum(d.accepted for d in step.drafts)
    nodes = f"{len(step.drafts)} draft" + "s" * (len(step.drafts) > 1)
    said = "".join(e.text for e in step.emitted).replace("\n", "⏎")
    return f"Step {number}: {nodes}, {accepted} accepted; it said “{said}”."


def _hint(number: int, step: TracedStep, token: Emitted) -> str:
    draft = step.drafts[token.draft - 1] if token.draft else None
    how = {
        "accepted": f"accepted at depth {token.depth}",
        "corrected": "the target's own, in place of a rejected draft",
        "bonus": "the target's own, behind accepted drafts",
        "own": "the target's own, nothing was drafted",
    }[token.how]
    drafter = "" if draft is None or draft.draft_probability is None else f", drafter {draft.draft_probability:.1%}"
    target = "" if token.target_probability is None else f"; target {token.target_probability:.1%}"
    return f"step {number}: {how}{target}{drafter}"


def _is_rejected(draft: Draft) -> bool:
    """Whether the target decided against it, or against one before it."""
    return not draft.accepted and not draft.trimmed


def _denied(step: TracedStep) -> list[Draft]:
    """The head's favourite where the accepted path ends, if it had one."""
    offered = [draft for draft in step.drafts if draft.parent == step.end]
    return sorted(offered, key=lambda draft: draft.draft_probability or 0.0)[-1:]


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
