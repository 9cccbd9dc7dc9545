"""A loss over part of a large vocabulary, that estimates the one over all of it.

With logits z of the head and t of the target, the loss of one position needs three sums over the vocabulary:

    loss = log sum_v exp(z_v)  -  sum_v exp(t_v) z_v / sum_v exp(t_v)

Nearly all of each sum comes from the N most frequent tokens F, which are always in. Of the M others, a set R of
m is drawn evenly anew for each micro-batch: E[M/m sum_R f] is the sum of f over all others, so M/m sum_R stands
in for it, which is to add log(M/m) to the logits of R inside each exponential (the correction of sampled
softmax; without it the others would count m/M times too little). Each sum is then unbiased. Their logarithm and
ratio are so up to the sums' relative variance, which is second order in the share that F leaves out, over m.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Of the other tokens, how many are drawn.
OTHERS = 2048


class Draw(NamedTuple):
    """Tokens [S], and what is added to their logits inside exponentials [S]."""

    rows: Tensor
    correction: Tensor


def most_frequent(counts: Tensor, number: int) -> Tensor:
    """[number] the tokens with the highest `counts` [V], ascending."""
    return counts.topk(number).indices.sort().values


class Vocabulary:
    """The tokens of a target by frequency, of which some are drawn."""

    def __init__(self, counts: Tensor, frequent: int, others: int) -> None:
        order = counts.cpu().argsort(descending=True, stable=True)
        self._frequent, self._rest, self._others = order[:frequent], order[frequent:], others

    @staticmethod
    def of(counts: Tensor, frequent: int) -> Vocabulary | None:
        """None where all tokens are to be in (`frequent` 0), or would be nearly anyway."""
        return Vocabulary(counts, frequent, OTHERS) if 0 < frequent < len(counts) - OTHERS else None

    def draw(self, seed: int, device: torch.device) -> Draw:
        """The frequent tokens and some others: the same for the same seed on any device."""
        generator = torch.Generator().manual_seed(seed)
        others = self._rest[torch.randperm(len(self._rest), generator=generator)[: self._others]]
        correction = torch.zeros(len(self._frequent) + len(others))
        correction[len(self._frequent) :] = math.log(len(self._rest) / len(others))
        return Draw(torch.cat((self._frequent, others)).to(device), correction.to(device))
