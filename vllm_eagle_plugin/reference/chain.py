"""Drafting a chain from every position of a sequence at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..configs import AttentionFreeConfig
from .base import ReferenceHead


class ChainStep:
    """One step of all chains. `logits` [B, T, Vd] and `drafts` [B, T] (target ids) are computed when asked for."""

    def __init__(self, head: ReferenceHead, features: Tensor) -> None:
        self._head = head
        #: What goes into the lm_head, [B, T, *].
        self.features = features

    @cached_property
    def logits(self) -> Tensor:
        return self._head.logits(self.features)

    @cached_property
    def drafts(self) -> Tensor:
        return self._head.target_ids(self.logits.argmax(-1))


def unroll(
    head: ReferenceHead,
    tokens: Tensor,
    hidden: Tensor,
    steps: int,
    choose: Callable[[int, Tensor], Tensor] | None = None,
    text: Tensor | None = None,
    fed: Tensor | None = None,
) -> Iterator[ChainStep]:
    """Draft `steps` tokens from each of the first T positions of `tokens` [B, T + 1].

    `hidden` [B, T, *] is what the target computed at those positions. The chain that starts at p has
    seen tokens up to p + 1 (the target's own next token) and drafts p + 2, p + 3, ... `choose(step,
    logits)` picks what the next step is fed, as target ids; by default the argmax (greedy drafting).
    With `text` [B, T + steps or more], the tokens that do stand there are fed: training-time test. With
    `fed` [B, T, steps], step j + 1 is fed the j-th of these, and no logits are computed that nobody asks for.
    """
    lagging = isinstance(head.config, AttentionFreeConfig) and head.config.token_pairing == "same"
    batch, length = hidden.shape[:2]
    memory = head.new_memory(torch.arange(length, device=hidden.device).expand(batch, length))
    state = head.fuse(hidden)
    previous, current = tokens[:, :-1], tokens[:, 1:]
    for step in range(steps):
        out, state = head(previous if lagging else current, state, memory)
        done = ChainStep(head, out)
        yield done
        previous = current
        if text is not None:
            current = text[:, step + 2 : step + 2 + length]
        elif fed is not None:
            current = fed[..., step]
        elif step + 1 < steps:
            current = done.drafts if choose is None else choose(step, done.logits)
        current, state = head.next_inputs(current, state)


@torch.inference_mode()
def draft_chain(head: ReferenceHead, tokens: Tensor, hidden: Tensor, steps: int) -> Tensor:
    """Greedy drafts [B, T, steps] from each position; see `unroll`."""
    return torch.stack([step.drafts for step in unroll(head, tokens, hidden, steps)], -1)
