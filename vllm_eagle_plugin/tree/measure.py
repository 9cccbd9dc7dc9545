"""What the parts of a step take on this machine: run once, when the engine starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from vllm.config import CUDAGraphMode
from vllm.distributed.parallel_state import get_tp_group
from vllm.forward_context import set_forward_context

from .budget import StepTimes

#: Numbers of rows measured. Small ones each, and more often: they decide for one request, they differ by the blocks
#: that kernels work in, and one that seems dear is not run, so that it would take long to learn better.
SMALL, LARGE = range(1, 17), (24, 32, 48, 64, 96, 128)
#: Turns of all sizes and of small ones; and for how many seconds there may be more than two.
TURNS, SMALL_TURNS, SECONDS = 4, 16, 6.0


@torch.inference_mode()
def measured_times(runner: Any) -> StepTimes:
    """Times of the V1 runner's target and head without any context; steps correct them as contexts grow.

    Under tensor parallelism all ranks get rank 0's figures, since they must decide alike.
    """
    rows, drafter, group = [n for n in (*SMALL, *LARGE) if n <= runner.max_num_tokens], runner.drafter, get_tp_group()

    def agree(number: Any) -> Any:
        return group.broadcast_object(number, src=0) if group.world_size > 1 else number

    def verify(rows: int) -> None:
        with _context(runner, rows):
            output = runner.model(
                input_ids=runner.input_ids.gpu[:rows],
                positions=runner.positions[:rows],
                intermediate_tensors=None,
                inputs_embeds=None,
            )
            hidden = output[0] if isinstance(output, tuple) else output
            _finish(runner.model.compute_logits(hidden[:rows]).float())

    def head(rows: int) -> None:
        with _context(runner, rows):
            output = drafter.run_head(rows)
            features = output[0] if isinstance(output, tuple) else output
            _finish(drafter.vocabulary.logits(features[:rows]).float().log_softmax(-1))

    # The larger passes first: until memory of their size has been freed once, the allocator asks the system for each.
    verifying = measure(verify, rows, agree)
    return StepTimes(*agree((verifying, measure(head, [n for n in rows if n <= 64], agree))))


def measure(run: Callable[[int], None], rows: Sequence[int], agree: Callable[[int], int] = int) -> dict[int, float]:
    """Milliseconds of `run(n)` for each n of `rows`. `run` returns when its work is done, not just queued.

    In turns. A machine that does other things is slow for a while, not for one size: of each size that share of its
    turn is taken which it has in most turns. Small sizes take part in more turns, and are what a turn is measured by.
    agree: makes ranks that run together take as many turns as each other.
    """
    few = [n for n in rows if n in SMALL] or list(rows)
    shares: dict[int, list[float]] = {n: [] for n in rows}
    paces: list[float] = []

    def turn(sizes: Sequence[int]) -> None:
        times: dict[int, float] = {}
        for n in sizes:
            start = perf_counter()
            run(n)
            times[n] = (perf_counter() - start) * 1e3
        paces.append(max(sum(times[n] for n in few), 1e-6))
        for n in sizes:
            shares[n].append(times[n] / paces[-1])

    for n in rows:
        run(n)  # whatever is compiled or allocated for this size
    turn(rows)
    for sizes, most in ((rows, TURNS), (few, SMALL_TURNS)):
        seconds = sum(shares[n][0] for n in sizes) * paces[0] / 1e3
        affordable = int(SECONDS / seconds) if seconds > SECONDS / most else most
        for _ in range(agree(max(affordable, 2)) - len(paces)):
            turn(sizes)
    return {n: float(np.median(found) * np.median(paces)) for n, found in shares.items()}


def _context(runner: Any, rows: int) -> Any:
    return set_forward_context(None, runner.vllm_config, num_tokens=rows, cudagraph_runtime_mode=CUDAGraphMode.NONE)


def _finish(result: torch.Tensor) -> None:
    """Wait for the device: reading one value does."""
    result[0, 0].item()
