"""What the parts of a step cost on this machine: run once, when the engine starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.distributed.parallel_state import get_tp_group
from vllm.forward_context import set_forward_context

from .cost import measure
from .cost_model import CostModel
from .tree import Tree

#: The most rows measured; beyond, costs are taken to go on growing as they did.
MOST = 128
#: Sizes up to this are measured each, and more often: they decide for one request, they differ by the blocks that
#: kernels work in, and one that seems dear is not run, so that it would take long to learn better.
SMALL = 16
#: Tokens of context that a branch's cost is measured behind.
CONTEXT = 200


@torch.inference_mode()
def measured_costs(runner: Any) -> CostModel:
    """Costs of the runner's target and head without any context; steps correct them as contexts grow.

    Under tensor parallelism all ranks get rank 0's figures, since they must decide alike.
    """
    sizes = [n for n in (*range(1, SMALL + 1), 24, 32, 48, 64, 96, MOST) if n <= runner.max_num_tokens]
    drafter, group = runner.drafter, get_tp_group()

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

    def level(rows: int) -> None:
        with _context(runner, rows):
            output = drafter.run_head(rows)
            features = output[0] if isinstance(output, tuple) else output
            logits = drafter.vocabulary.logits(features[:rows]).float()
            _finish(logits.log_softmax(-1))

    few = [n for n in sizes if n <= MOST // 2]
    # The larger passes first: until memory of their size has been freed once, the allocator asks the system for each.
    verifying = measure(verify, sizes, SMALL, agree)
    drafting = measure(level, few, SMALL, agree)
    return CostModel.of(agree(CostModel(verifying, drafting, drafting, branch=_branch(runner, agree)).numbers()))


def _branch(runner: Any, agree: Callable[[Any], Any]) -> float:
    """Milliseconds that each branch of a tree adds to verifying a chain of as many nodes; 0 if nobody asks."""
    planner = runner.drafter.planner
    nodes = min(planner.shape.nodes, runner.max_num_tokens - 1) if planner.chooser else 0
    stem = -(-nodes // 2)
    branches = nodes - stem
    tokens = tuple(range(nodes))
    # Depth first, as trees are drawn: the rows of others have to be picked and put back.
    tree, chain = Tree(tokens, (*range(stem), *reversed(range(branches)))), Tree.chain(tokens)
    context = min(CONTEXT, runner.max_model_len - nodes - 1)
    if not branches or context < 0:
        return 0.0

    def run(which: int) -> None:
        runner.run_without_request((chain, tree)[which], context)

    times = measure(run, (0, 1), 1, agree)
    return max(0.0, times[1] - times[0]) / branches


def _context(runner: Any, rows: int) -> Any:
    return set_forward_context(None, runner.vllm_config, num_tokens=rows, cudagraph_runtime_mode=CUDAGraphMode.NONE)


def _finish(result: torch.Tensor) -> None:
    """Wait for the device: reading one value does."""
    result[0, 0].item()
