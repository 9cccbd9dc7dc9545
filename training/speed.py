"""How fast training goes, and how fast this machine could multiply matrices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..targets.target import read_target
from .build import build
from .corpus import collate, counted_positions, plan_steps, read_corpus
from .optimisers import optimisers
from .recipe import Recipe
from .teacher import identify

#: Side of the square matrices whose product is the ceiling; of the order of a training batch.
_SIDE = 2048


def measure_speed(recipe: Recipe, target_name: str, data: Path, steps: int) -> dict[str, Any]:
    """Time `steps` training steps of one process, and a matrix product of the same precision.

    Returns answer tokens per second (on processors: of processor time per thread), floating-point
    operations per token (those of matrix products, forward and backward, the target's included), what
    is reached, the ceiling and its share.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    target = read_target(target_name)
    corpus = read_corpus([data], identify(target), recipe.held_out)
    teacher, objective = build(recipe, target, corpus, device)
    steppers = optimisers(objective.head, recipe.optimiser)
    plan = plan_steps(corpus.train, recipe.batch, recipe.seed)

    def step(index: int) -> int:
        groups = plan[index % len(plan)]
        batches = [collate([corpus.train[i] for i in group], recipe.batch.length) for group in groups]
        counts = counted_positions(batches, recipe.unroll.steps).to(device)
        for batch in batches:
            batch = batch.to(device)
            states = teacher(batch.ids[:, :-1])
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss, _ = objective(batch, states, counts, 0)
            loss.backward()
        for optimiser in steppers:
            optimiser.step()
            optimiser.zero_grad()
        return int(counts[0])

    with FlopCounterMode(display=False) as counter:
        counted = step(0)
    per_token = counter.get_total_flops() / counted
    started, tokens = now(device), 0
    for index in range(1, steps + 1):
        tokens += step(index)
    rate = tokens / (now(device) - started)
    ceiling = matmul_ceiling(dtype, device)
    return {
        "recipe": recipe.name,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "tokens_per_second": rate,
        "flops_per_token": per_token,
        "flops": rate * per_token,
        "ceiling_flops": ceiling,
        "share": rate * per_token / ceiling,
    }


def matmul_ceiling(dtype: torch.dtype, device: torch.device, repeats: int = 20) -> float:
    """Floating-point operations per second of large square matrix products, the best of three rounds."""
    one, other = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    one @ other
    best = 0.0
    for _ in range(3):
        started = now(device)
        for _ in range(repeats):
            one @ other
        best = max(best, repeats * 2 * _SIDE**3 / (now(device) - started))
    return best


def now(device: torch.device) -> float:
    """Seconds on a GPU; on processors, seconds of processor time per thread, which other work on the same
    machine does not lengthen."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.monotonic()
    return time.process_time() / torch.get_num_threads()
