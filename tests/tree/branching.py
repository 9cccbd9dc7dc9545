"""A head that is often sure of the wrong token, and next to sure of the right one."""

from __future__ import annotations

import torch

from vllm_eagle_plugin.configs import HeadConfig
from vllm_eagle_plugin.reference import ReferenceHead

from ..known_answer import Target, known_answer_head


def confused_head(config: HeadConfig, target: Target) -> tuple[ReferenceHead, set[int]]:
    """A known-answer head of `config`, with an lm_head of its own, that drafts a token nobody ever says in front
    of every other token of the target's language; and those tokens.

    The target speaks only some of its tokens. A confused token u gets a decoy among the unspoken ones whose row in
    the lm_head is a little longer than u's: where u is right the decoy scores just above it, and nowhere else.
    """
    head = known_answer_head(config, target)
    spoken = target.successor.unique().tolist()
    unspoken = iter([t for t in range(config.vocab_size) if t not in spoken])
    confused = set(spoken[::2])
    with torch.no_grad():
        for token in confused:
            decoy = next(unspoken)
            head.lm_head.weight[decoy] = 1.001 * head.lm_head.weight[token]
            if head.lm_head.bias is not None:
                head.lm_head.bias[decoy] = 1.001 * head.lm_head.bias[token]
    return head, confused


def steps(target: Target, prompt: list[int], tokens: int, accepted: int, confused: set[int]) -> list[int]:
    """Accepted drafts of each step of one request: of a chain of `accepted` drafts by a head confused so."""
    text = target.walk(int(target.successor[prompt[-1]]), tokens + accepted + 1)
    found, at = [], 1  # the prompt's own step samples the first token
    while at < tokens:
        ahead = text[at : at + accepted]
        right = next((i for i, token in enumerate(ahead) if token in confused), len(ahead))
        found.append(right)
        at += right + 1
    return found
