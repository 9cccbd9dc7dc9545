"""One page of every kind, made from invented records."""

from __future__ import annotations

from functools import cache

import numpy as np
from vllm_eagle_plugin.benchmarks.acceptance import Run, summarise
from vllm_eagle_plugin.benchmarks.report.acceptance_page import acceptance_page
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult, Workload
from vllm_eagle_plugin.benchmarks.session import Step

from .synthetic import geometric

CATEGORIES = ("writing", "mathematics", "a category with a rather long name, as people give them")


def acceptance_result(seed: int = 0, questions: int = 30) -> AcceptanceResult:
    records = geometric(np.random.default_rng(seed), questions, steps=40)
    records = [
        r.model_copy(update={"category": CATEGORIES[i % 3], "prompt_tokens": 20 * (i % 5 + 1), "trimmed": i % 3})
        for i, r in enumerate(records)
    ]
    steps = [Step(1, 4, True, 20.0, 4.0, 15.0, 0.3)] * 10
    workload = Workload(
        target="a/target", method="eagle3", head="a/head", num_speculative_tokens=3, prompts="builtin",
        prompts_sha256="0" * 64, temperature=0.0, max_tokens=128, concurrency=1, all_turns=False, seeds=[0],
    )  # fmt: skip
    return summarise(Run(records=records, steps=steps, seconds=60.0), 3, workload, questions)


@cache
def pages() -> dict[str, str]:
    """HTML by name."""
    return {"acceptance": acceptance_page(acceptance_result())}
