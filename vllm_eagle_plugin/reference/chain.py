"""Drafting a chain from every position of a sequence at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..configs import AttentionFreeConfig
from .base import ReferenceHead


class ChainStep(NamedTuple):
    """One step of all chains: lm_head input [B, T, *], draft logits [B, T, Vd], drafted target ids [B, T]."""

    features: Tensor
    logits: Tensor
    drafts: Tensor


def unroll(
    head: ReferenceHead,
    tokens: Tensor,
    hidden: Tensor,
    steps: int,
    choose: Callable[[int, Tensor], Tensor] | None = None,
) -> Iterator[ChainStep]:
    """Draft `steps` tokens from each of the first T positions of `tokens` [B, T + 1].

    `hidden` [B, T, *] is what the target computed at those positions. The chain that starts at p has
    seen tokens up to p + 1 (the target's own next token) and drafts p + 2, p + 3, ... `choose(step,
    logits)` picks what the next step is fed, as target ids; by default the argmax (greedy drafting).
    """
    lagging = isinstance(head.config, AttentionFreeConfig) and head.config.token_pairing == "same"
    batch, length = hidden.shape[:2]
    memory = head.new_memory(torch.arange(length, device=hidden.device).expand(batch, length))
    state = head.fuse(hidden)
    previous, current = tokens[:, :-1], tokens[:, 1:]
    for step in range(steps):
        out, state = head(previous if lagging else current, state, memory)
        logits = head.logits(out)
        drafts = head.target_ids(logits.argmax(-1))
        yield ChainStep(out, logits, drafts)
        previous, current = current, drafts if choose is None else choose(step, logits)


@torch.inference_mode()
def draft_chain(head: ReferenceHead, tokens: Tensor, hidden: Tensor, steps: int) -> Tensor:
    """Greedy drafts [B, T, steps] from each position; see `unroll`."""
    return torch.stack([step.drafts for step in unroll(head, tokens, hidden, steps)], -1)
