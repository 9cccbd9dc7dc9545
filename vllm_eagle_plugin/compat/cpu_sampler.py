"""vLLM's CPU stand-ins for the kernels of its rejection sampler, and the one that must be repaired."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .hooks import MARK
from .problems import logger


def correct_cpu_expand(module: ModuleType) -> None:
    """Repair vLLM's CPU stand-in for the rejection sampler's `expand_kernel`.

    In 0.29 to 0.33 it hands the C++ kernel an int64 copy of its float output and drops the copy, so the
    expanded temperature, top-k and top-p of drafted tokens stay uninitialised memory and speculation
    above temperature 0 is not lossless. Replaced only where a first call shows the fault.
    """
    original = getattr(module, "_expand_kernel_impl", None)
    if original is None or getattr(original, MARK, False):
        return
    chosen: list[Callable[..., None]] = []

    @functools.wraps(original)
    def expand(output: Any, values: Any, cu_num_tokens: Any, *args: Any, **kwargs: Any) -> None:
        if not chosen:
            faulty = _expand_is_faulty(original)
            if faulty:
                logger.info("vllm-eagle-plugin repairs vLLM's CPU sampler for drafted tokens above temperature 0.")
            chosen.append(expand_values if faulty else original)
        chosen[0](output, values, cu_num_tokens, *args, **kwargs)

    setattr(expand, MARK, True)
    replace_kernel(module, "_expand_kernel_impl", expand)


def replace_kernel(module: Any, name: str, kernel: Callable[..., Any]) -> None:
    """Put `kernel` in the place of one of vLLM's CPU stand-ins; up to 0.30 a wrapper beside it is what is called."""
    original = getattr(module, name)
    setattr(module, name, kernel)
    for wrapper in vars(module).values():
        if getattr(wrapper, "func", None) is original:
            wrapper.func = kernel


def expand_values(
    output: Any, values: Any, cu_num_tokens: Any, replace_from: Any, replace_to: Any, MAX_NUM_TOKENS: Any = None
) -> None:
    """Repeat values [B] over each request's tokens into output [N]; what `expand_kernel` computes."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1)).long()
    replaced = values.where(values != replace_from, values.new_tensor(replace_to))
    output.copy_(replaced.repeat_interleave(counts))


def _expand_is_faulty(implementation: Callable[..., None]) -> bool:
    import torch

    output = torch.full((3,), -1.0)
    try:
        implementation(output, torch.tensor([0.5, 0.25]), torch.tensor([1, 3], dtype=torch.int32), 0, 1)
    except (RuntimeError, TypeError, AttributeError):
        return True
    return output.tolist() != [0.5, 0.25, 0.25]
