"""The noise that vLLM's sampler adds to logits, foretold.

vLLM draws a token by the Gumbel-max trick: the argmax of logits plus noise, where the noise is a function of a
generator's state and of nothing else. How it is made differs between versions and devices; each way known here is
believed only where the sampler itself picks what it foretells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: (generator, size) to the Gumbel noise [size] of the generator's next draw, which takes the draw.
Noise = Callable[[torch.Generator, int], Tensor]

#: Draws that must be foretold in a row.
TRIED = 16
#: Of SplitMix64 (Steele, Lea and Flood 2014): the golden gamma and the two multipliers, as signed integers.
_GAMMA, _FIRST, _SECOND = (v - 2**64 for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def exponential(generator: torch.Generator, size: int) -> Tensor:
    """Of `random_sample`: logits divided by exponential noise, on whatever device."""
    return -torch.empty(size, device=generator.device).exponential_(generator=generator).log_()


def split_mix(generator: torch.Generator, size: int) -> Tensor:
    """Of the CPU kernel `fused_gumbel_argmax` since 0.32: SplitMix64 of a drawn seed and of each token."""
    key = _mixed(torch.randint(0, 2**31, (1,), generator=generator))
    bits = _shifted(_mixed(key + torch.arange(1, size + 1) * _GAMMA), 11)
    # One minus the uniform variable: in single precision, so that the most noise, near 1, is the most exact.
    below_one = (2.0**53 - 0.5 - bits.double()).mul_(2.0**-53).float()
    return -below_one.neg_().log1p_().neg_().log_()


def foretold(sampler: Any, size: int, device: torch.device) -> Noise | None:
    """The noise of `sampler`, vLLM's `Sampler`, over a vocabulary of `size`; None where none of ours is."""
    for noise in (split_mix, exponential) if device.type == "cpu" else (exponential,):
        drawn, ours = (torch.Generator(device).manual_seed(7) for _ in range(2))
        if all(_draws(sampler, drawn, size) == int(noise(ours, size).argmax()) for _ in range(TRIED)):
            return noise
    return None


def _draws(sampler: Any, generator: torch.Generator, size: int) -> int:
    """What the sampler draws where all tokens are as likely: the one with the most noise."""
    flat = torch.zeros(1, size, device=generator.device)
    tokens, _ = sampler.topk_topp_sampler(flat, {0: generator}, None, None)
    return int(tokens.view(-1)[0])


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted right as unsigned 64-bit integers are."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(values: Tensor) -> Tensor:
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)
