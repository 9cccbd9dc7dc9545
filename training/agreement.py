"""How far a head's chains agree with the target's own text: acceptance, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference import ReferenceHead, draft_chain
from .corpus import Conversation, collate, padded_batches
from .teacher import States


@dataclass(frozen=True)
class Agreement:
    """Chains of k drafts against greedy answers."""

    #: Share of all positions whose first 1, 2, ... k drafts are the answer's next tokens.
    chain: list[float]
    #: What an engine would count that drafts k tokens, keeps the agreeing ones and one of the target's,
    #: and goes on behind them: 1 + accepted / drafts, as vLLM defines its acceptance length.
    acceptance_length: float
    #: Share of those drafts accepted at each position.
    per_position: list[float]
    #: Of each conversation, how many drafts an engine would make and how many tokens of them it would accept.
    drafts: list[int]
    accepted: list[int]

    def as_json(self) -> dict[str, Any]:
        return {
            "agreement": [round(x, 4) for x in self.chain],
            "acceptance_length": round(self.acceptance_length, 4),
            "per_position_acceptance_rates": [round(x, 4) for x in self.per_position],
        }


def measure(
    head: ReferenceHead,
    teacher: Callable[[Tensor], States],
    conversations: Sequence[Conversation],
    steps: int,
    length: int,
    tokens: int = 2048,
) -> Agreement:
    """Draft `steps` tokens from every position of greedy `conversations` and compare.

    The head's target must be attached, on the device where both are. `length` cuts conversations and
    `tokens` bounds a batch.
    """
    device = next(head.parameters()).device
    everywhere, positions = torch.zeros(steps), 0
    visited, stops = torch.zeros(steps), 0
    made: list[tuple[int, int]] = []
    for group in padded_batches(conversations, length, tokens):
        batch = collate(group, length)
        ids = batch.ids.to(device)
        drafts = draft_chain(head, ids, teacher(ids[:, :-1]).hidden, steps).cpu()
        for row, conversation in enumerate(group):
            end = min(len(conversation), length)
            # Drafts of position p stand at p + 2 .. p + 1 + steps, all of which must be known.
            first, last = len(conversation.prompt) - 1, end - 1 - steps
            if last <= first:
                continue
            starts = torch.arange(first, last)
            text = batch.ids[row][starts[:, None] + 2 + torch.arange(steps)]
            agreed = (drafts[row][starts] == text).cumprod(-1)
            everywhere, positions = everywhere + agreed.sum(0), positions + len(starts)
            lengths, at, steps_made, accepted = agreed.sum(-1).tolist(), 0, 0, 0
            while at < len(lengths):
                visited, steps_made, accepted = visited + agreed[at], steps_made + 1, accepted + lengths[at]
                at += lengths[at] + 1
            stops += steps_made
            made.append((steps_made, accepted))
    return Agreement(
        (everywhere / max(1, positions)).tolist(),
        1 + float(visited.sum()) / max(1, stops),
        (visited / max(1, stops)).tolist(),
        [steps_made for steps_made, _ in made],
        [accepted for _, accepted in made],
    )
