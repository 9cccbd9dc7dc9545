"""Verification of draft trees: a level-synchronous walk with vLLM's own sampler.

At every node of its path a request samples the target as plain decoding would; where the sampled token is
a child's draft, the walk goes on from that child. What is emitted is thus the target's own sample at every step,
whatever the drafts: temperature, truncation, penalties, logprobs and seeds behave as without speculation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from .tree import Tree


@dataclass(frozen=True)
class Walk:
    """Where a step's requests went."""

    #: Sampled tokens [B, W] behind one another, padded with -1, and their logprobs if any were asked for.
    output: SamplerOutput
    #: Accepted nodes of each request, root's child first.
    paths: list[list[int]]


def walk(sampler: Any, logits: Tensor, metadata: Any, trees: Sequence[Tree | None], *, greedy: bool) -> Walk:
    """Verify `trees` [B] against `logits`: one row for each request's root, then one for each of its nodes.

    `metadata` is vLLM's `SamplingMetadata` of the batch. `greedy` asserts that every request takes the
    argmax of untouched logits, without logprobs, so that one argmax over all rows stands for the sampler.
    """
    sizes = [1 + (len(tree) if tree is not None else 0) for tree in trees]
    starts = [0, *accumulate(sizes[:-1])]
    if greedy:
        sampled = sampler.greedy_sample(logits.float()).tolist()
        paths: list[list[int]] = []
        tokens: list[list[int]] = []
        for start, tree in zip(starts, trees, strict=True):
            path: list[int] = []
            emitted = [sampled[start]]
            while tree is not None and (node := tree.children.get((path[-1] if path else 0, emitted[-1]))):
                path.append(node)
                emitted.append(sampled[start + node])
            paths.append(path)
            tokens.append(emitted)
        return Walk(SamplerOutput(_padded(tokens, logits.device), None), paths)
    return _walk_sampled(sampler, logits, metadata, trees, starts)


def _walk_sampled(sampler: Any, logits: Tensor, metadata: Any, trees: Sequence[Tree | None], starts: list[int]) -> Walk:
    paths: list[list[int]] = [[] for _ in trees]
    tokens: list[list[int]] = [[] for _ in trees]
    levels: list[LogprobsTensors | None] = []
    first = torch.tensor(starts)
    active = set(range(len(trees)))
    while active:
        # A batch row that has ended is sampled along and ignored, but must not draw from its generator.
        level = replace(
            metadata,
            generators={i: g for i, g in metadata.generators.items() if i in active},
            output_token_ids=[o + t for o, t in zip(metadata.output_token_ids, tokens, strict=False)],
        )
        nodes = torch.tensor([path[-1] if path else 0 for path in paths])
        output = sampler(logits=logits[(first + nodes).to(logits.device)], sampling_metadata=level)
        levels.append(output.logprobs_tensors)
        sampled = output.sampled_token_ids.view(-1).tolist()
        for i in list(active):
            tree, path = trees[i], paths[i]
            tokens[i].append(sampled[i])
            node = tree.children.get((path[-1] if path else 0, sampled[i])) if tree is not None else None
            if node is None:
                active.remove(i)
            else:
                path.append(node)
    return Walk(SamplerOutput(_padded(tokens, logits.device), _stacked(levels)), paths)


def _padded(tokens: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, tokens))
    return torch.tensor([row + [-1] * (width - len(row)) for row in tokens], dtype=torch.int32, device=device)


def _stacked(levels: list[LogprobsTensors | None]) -> LogprobsTensors | None:
    """Logprobs of W levels of B rows to those of B * W rows; rows behind a request's end are filtered by vLLM."""
    present = [level for level in levels if level is not None]
    if not present:
        return None
    # All logprobs (-1) come without ids and ranks: those fields stay empty.
    return LogprobsTensors(
        *(
            torch.stack(field, 1).flatten(0, 1) if field[0].numel() else field[0]
            for field in zip(*(level[:3] for level in present), strict=True)
        )
    )
