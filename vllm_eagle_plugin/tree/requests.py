"""What a request's sampling parameters allow its drafts to be. Free of vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Allowance:
    """The drafts that a request's next step may verify, and why these are fewer than asked for."""

    #: Most levels; None: any.
    levels: int | None = None
    #: Only a chain: one draft for each position.
    chain: bool = False
    reason: str = ""


FREE, NONE = Allowance(), Allowance(levels=0)


def allowance(params: Any, emitted: int) -> Allowance:
    """What a request with vLLM's `SamplingParams` may draft, having emitted `emitted` tokens."""
    if params.structured_outputs is not None:
        # vLLM advances the grammar along the drafts as one sequence.
        return Allowance(chain=True, reason="structured output")
    if getattr(params, "thinking_token_budget", None) is not None:
        return Allowance(levels=0, reason="thinking budget")
    # Stop tokens are masked for whole steps: within one, all samples or none must be before min_tokens.
    if emitted < params.min_tokens:
        return Allowance(levels=params.min_tokens - 1 - emitted, reason="min_tokens")
    return FREE


def draws_plainly(params: Any) -> bool:
    """Whether nothing touches this request's logits before its argmax, and nothing else is asked of them."""
    return not (
        params.logprobs is not None
        or params.min_tokens
        or params.logit_bias
        or params.allowed_token_ids
        or params.bad_words
        or params.structured_outputs is not None
        or getattr(params, "thinking_token_budget", None) is not None
        or getattr(params, "logprob_token_ids", None)
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )
