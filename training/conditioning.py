"""Inputs of one size: what makes a small head learn quickly, and leaves no trace in what is exported.

A head's first matrix reads things of very different sizes side by side: in SmolLM2 the residual stream's
channels span three orders of magnitude between and within layers, embeddings are a tenth of a normed
feature. AdamW moves every weight by about the same amount, so what is small is learnt late and what is
large is unstable. In training each input channel is therefore divided by its root mean square, rounded to a
power of two: a division that costs no bit in any precision. It is folded into the matrix when weights leave
the trainer, so the exported head is the trained one exactly.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..configs import Eagle3Config
from ..reference import ReferenceHead, unroll
from .corpus import MicroBatch
from .teacher import Teacher

#: Name of the divisors in the state dict of the matrix they belong to.
_BUFFER = "input_scale"
#: No channel is enlarged more than this, relative to the others' median.
_LARGEST = 100.0
#: Gain of EAGLE-3's last norm at the start. Its lm_head starts as the target's, and random features of
#: full size would make it certain of wrong tokens.
_FIRST_GAIN = 0.3
#: Matrices that read what the target hands over; those of one head all read the same.
_FIRST = re.compile(r"fc|body\.input_projection|blocks\.\d+\.layers\.0")


def condition(head: ReferenceHead, teacher: Teacher, sample: MicroBatch, trained: bool = False) -> None:
    """Divide what the head's first matrix reads by its size in `sample`, from now on and in place.

    The head's target must be attached. A head without such a matrix is left as it is. One that is `trained` computes
    the same afterwards: its matrix is multiplied by what its inputs are divided by.
    """
    config = head.config
    if not trained and isinstance(config, Eagle3Config) and config.output_norm and config.own_lm_head:
        nn.init.constant_(head.norm.weight, _FIRST_GAIN)
    matrices = _first_matrices(head)
    # The first token of a sequence may be hundreds of times larger than the rest, so answers are what tells.
    told = sample.answers[:, 1:]
    if not matrices or not bool(told.any()):
        return
    squares: list[Tensor] = []
    capture = next(iter(matrices.values())).register_forward_pre_hook(
        lambda _, inputs: squares.append(inputs[0][told].float().square().mean(0))
    )
    # A chain's later steps read what an untrained head made up, so one step is enough.
    with torch.no_grad():
        states = teacher(sample.ids[:, :-1])
        next(iter(unroll(head, sample.ids, states.hidden.float(), 1)))
    capture.remove()
    scale = _divisors(squares[0].sqrt())
    for matrix in matrices.values():
        if trained:
            with torch.no_grad():
                matrix.weight.mul_(scale)
        matrix.register_buffer(_BUFFER, scale.clone())
        matrix.register_forward_pre_hook(_divided)


def unconditioned(head: ReferenceHead, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `head`, conditioned or not, as the plain head that computes the same."""
    plain = {name: tensor for name, tensor in weights.items() if not name.endswith(f".{_BUFFER}")}
    for name in _first_matrices(head):
        if f"{name}.{_BUFFER}" in weights:
            plain[f"{name}.weight"] = weights[f"{name}.weight"] / weights[f"{name}.{_BUFFER}"]
    return plain


def _first_matrices(head: ReferenceHead) -> dict[str, nn.Module]:
    return {name: module for name, module in head.named_modules() if _FIRST.fullmatch(name)}


def _divisors(size: Tensor) -> Tensor:
    """Powers of two near `size` [C]."""
    on = size[size > 0]
    if not len(on):
        return torch.ones_like(size)
    return size.clamp_min(on.median() / _LARGEST).log2().round().exp2()


def _divided(matrix: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] / matrix.get_buffer(_BUFFER).to(inputs[0].dtype),)
