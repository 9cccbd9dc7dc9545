"""Verifying trees with Model Runner V2's sampler, which takes the rows before a row for its chain.

A node's path is known before anything is sampled, and a draw is keyed by its request's seed and its position. So where
each row is processed for itself, all nodes are sampled at once, and the walk only compares. Where something counts what
came before (penalties, bad words, thinking budgets, processors of the user's), it is handed level by level each
request's path as rows of its own, one behind the other. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import get_max_chunk_logits

from .trees import Trees, columns
from .walk import Paths, drawn, greedy


class Step(NamedTuple):
    """What a step verifies of a batch of B requests."""

    #: Cut to what is verified; of a request that verifies nothing, no node is in use.
    trees: Trees
    #: [B] row of each root among the pass's tokens, its position, and its row among the logits.
    first: Tensor
    base: Tensor
    logit: Tensor
    #: [B] nodes behind the root that have rows, used or not.
    scheduled: Tensor

    def rows(self) -> Tensor:
        """[B, N + 1] rows of the root and of each node among the pass's tokens; the root's where there is none."""
        nodes = columns(self.trees.tokens.new_empty(self.trees.tokens.shape[1] + 1))
        return self.first[:, None] + nodes * (nodes <= self.scheduled[:, None])


def verify(sampler: Any, logits: Tensor, batch: Any, step: Step, depth: int) -> tuple[SamplerOutput, Paths]:
    """Sample along the trees from logits [rows, V] as plain decoding would. depth: a bound on the trees' depths."""
    requests = batch.idx_mapping_np
    scores = sampler.get_logprobs_dims(requests)
    by_level = any(_reads_history(processor, requests) for processor in _processors(sampler))
    paths, processed = (_by_level if by_level else _at_once)(sampler, logits, batch, step, depth)
    logprobs = None
    if scores is not None:
        slots = batch.idx_mapping[:, None].expand(-1, depth + 1).flatten()
        logprobs = compute_topk_scores(
            processed(paths)
            if sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
            else logits[(step.logit[:, None] + paths.nodes).flatten()],
            scores[0],
            paths.tokens.clamp(min=0).flatten(),
            [*range(0, len(slots) + 1, depth + 1)],
            logprob_token_ids_state=sampler.logprob_token_ids_state,
            expanded_idx_mapping=slots,
            max_per_req_token_ids=scores[1],
            logits_mode=sampler.logprobs_mode in ("raw_logits", "processed_logits"),
        )
    sampled, rejected = get_num_sampled_and_rejected(
        paths.counts.int(),
        batch.seq_lens[: len(requests)],
        batch.cu_num_logits,
        batch.idx_mapping,
        sampler.req_states.prefill_len.gpu,
    )
    nans = get_num_nans(logits[step.logit]) if sampler.compute_nans else None
    return SamplerOutput(paths.tokens, logprobs, nans, sampled, rejected), paths


#: [B * (D + 1), V] processed logits along paths.
Processed = Callable[[Paths], Tensor]


def _at_once(sampler: Any, logits: Tensor, batch: Any, step: Step, depth: int) -> tuple[Paths, Processed]:
    position, token = batch.positions[batch.logits_indices], batch.input_ids[batch.logits_indices]
    # In pieces: processing copies logits to fp32.
    pieces = [
        _sample(sampler, batch, *piece)
        for piece in zip(
            *(
                t.split(get_max_chunk_logits(logits.shape[1]))
                for t in (logits, batch.expanded_idx_mapping, position, token, batch.expanded_local_pos)
            ),
            strict=True,
        )
    ]
    sampled, processed = (torch.cat(p) if len(p) > 1 else p[0] for p in zip(*pieces, strict=True))
    nodes = columns(step.trees.tokens.new_empty(step.trees.tokens.shape[1] + 1))
    at = step.logit[:, None] + nodes * (nodes <= step.scheduled[:, None])
    paths = greedy(step.trees, sampled[at], depth)
    return paths, lambda paths: processed[(step.logit[:, None] + paths.nodes).flatten()]


def _by_level(sampler: Any, logits: Tensor, batch: Any, step: Step, depth: int) -> tuple[Paths, Processed]:
    levels: list[Tensor] = []

    def sample(node: Tensor, path: Paths) -> Tensor:
        nodes = torch.cat([path.nodes, node[:, None]], 1)
        rows, local = (step.logit[:, None] + nodes).flatten(), columns(nodes)
        shape = nodes.shape
        tokens, processed = _sample(
            sampler,
            batch,
            logits[rows],
            batch.idx_mapping[:, None].expand(shape).flatten(),
            (step.base[:, None] + local).flatten(),
            batch.input_ids[batch.logits_indices[rows]],
            local.int().expand(shape).flatten(),
        )
        levels.append(processed.view(*shape, -1)[:, -1])
        return tokens.view(shape)[:, -1]

    paths = drawn(step.trees, sample, depth)
    return paths, lambda paths: torch.stack(levels, 1).flatten(0, 1)


def _sample(
    sampler: Any, batch: Any, logits: Tensor, slots: Tensor, positions: Tensor, tokens: Tensor, local: Tensor
) -> tuple[Tensor, Tensor]:
    """vLLM's sampler on rows: the tokens drawn [rows], and the processed logits [rows, V]."""
    bounds = batch.seq_lens_cpu_upper_bound.numpy()
    return sampler.sample(
        logits, slots, batch.idx_mapping, batch.idx_mapping_np, positions, tokens, local, bounds, return_logprobs=True
    )


def _processors(sampler: Any) -> list[Any]:
    return [*sampler.logits_processors, sampler.thinking_budget_state]


def _reads_history(processor: Any, requests: np.ndarray) -> bool:
    """Whether what came before a row matters to what this does to the rows of these requests (by their slots)."""
    if isinstance(processor, LogitBiasState):
        return False
    if isinstance(processor, PenaltiesState):
        return bool(processor.use_penalty[requests].any())
    if isinstance(processor, BadWordsState):
        return bool(processor.num_bad_words.np[requests].any())
    # A thinking budget's state; of the user's processors nothing is known.
    if not getattr(processor, "enabled", True):
        return False
    used = getattr(processor, "use_thinking_budget", None)
    return used is None or bool(used[requests].any())
