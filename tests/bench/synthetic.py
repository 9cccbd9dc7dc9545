"""Records with known statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm_eagle_plugin.benchmarks.records import Record


def record(question: int, accepted: list[int], drafted: list[int] | int = 3, **fields: Any) -> Record:
    """A request whose every step drafted `drafted` tokens and none was trimmed, unless told otherwise."""
    drafts = [drafted] * len(accepted) if isinstance(drafted, int) else drafted
    trimmed = fields.pop("trimmed", 0)
    output = 1 + sum(accepted) + len(accepted) + (fields.get("plain_steps") or 0) - (trimmed or 0)
    defaults: dict[str, Any] = {
        "question_id": str(question),
        "category": "",
        "prompt_tokens": 10,
        "output_tokens": output,
        "plain_steps": 0,
        "ttft": 0.1,
        "latency": 0.1 + 0.01 * output,
    }
    return Record(question=question, accepted=accepted, drafted=drafts, trimmed=trimmed, **{**defaults, **fields})


def geometric(rng: np.random.Generator, questions: int, k: int = 3, steps: int = 30) -> list[Record]:
    """Questions of their own difficulty p ~ Beta(4, 2); each draft of theirs is right with probability p."""
    difficulty = rng.beta(4, 2, questions)
    right = rng.random((questions, steps, k)) < difficulty[:, None, None]
    accepted = right.cumprod(-1).sum(-1)
    return [record(q, row.tolist(), k) for q, row in enumerate(accepted)]


def true_figures(k: int = 3) -> dict[str, np.ndarray]:
    """What the figures of `geometric` records tend to: E[p^i] are the rates, p ~ Beta(4, 2)."""
    conditional = np.array([(4 + i) / (6 + i) for i in range(k)])
    rates = conditional.cumprod()
    length = 1 + rates.sum()
    return {
        "acceptance_length": length,
        "acceptance_rate": rates.sum() / k,
        "per_position": rates,
        "conditional": conditional,
        "expected_length": length,
        "tokens_per_step": length,
    }


def true_length(k: int = 3) -> float:
    """1 + sum of E[p^i]."""
    return float(true_figures(k)["acceptance_length"])
