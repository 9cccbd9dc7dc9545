"""Walking trees with the sampler of vLLM's V1 runner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from .trees import Trees, columns
from .walk import Paths, drawn, greedy


class Step(NamedTuple):
    """The trees that a step verifies, of all requests of its batch; one without drafts has a tree without nodes."""

    trees: Trees
    #: [B] row and position of each root.
    first: Tensor
    base: Tensor

    @property
    def in_use(self) -> Tensor:
        """[B, N + 1] bool: the roots and the nodes in use."""
        return pad(self.trees.used, (1, 0), value=True)

    @property
    def rows(self) -> Tensor:
        """[B, N + 1] rows of the roots and their nodes in use; of others the root's."""
        return self.first[:, None] + self._nodes

    @property
    def logits(self) -> Tensor:
        """Alike, rows of the step's logits, of which there is one for each root and each node in use."""
        counts = self.trees.counts + 1
        return (counts.cumsum(0) - counts)[:, None] + self._nodes

    @property
    def _nodes(self) -> Tensor:
        return columns(self.in_use).where(self.in_use, 0)


def walk(sampler: Any, logits: Tensor, metadata: Any, step: Step, takes_argmax: bool) -> tuple[SamplerOutput, Paths]:
    """Verify a step's trees against its logits [sum of counts + 1, V]: what vLLM is to take for sampled, and the paths.

    metadata: vLLM's `SamplingMetadata` of the batch. takes_argmax: every request takes the argmax of untouched logits,
    without logprobs, so that one argmax over all rows stands for the sampler.
    """
    trees, at = step.trees, step.logits
    depth = int(trees.depths.where(trees.used, 0).max())
    if takes_argmax:
        paths = greedy(trees, sampler.greedy_sample(logits.float()).long()[at], depth)
        return _output(paths, []), paths
    known, levels, alive = metadata.output_token_ids, [], [True] * len(trees.counts)

    def sample(node: Tensor, path: Paths) -> Tensor:
        # A request that has ended is sampled along and ignored, but must not draw from its generator.
        so_far = [[token for token in row if token >= 0] for row in path.tokens.tolist()]
        level = replace(
            metadata,
            generators={i: g for i, g in metadata.generators.items() if alive[i]},
            output_token_ids=[before + tokens for before, tokens in zip(known, so_far, strict=False)],
        )
        output = sampler(logits=logits[at.gather(1, node[:, None])[:, 0]], sampling_metadata=level)
        levels.append(output.logprobs_tensors)
        return output.sampled_token_ids.view(-1)

    def goes_on(still: Tensor) -> bool:
        nonlocal alive
        alive = still.tolist()
        return any(alive)

    paths = drawn(trees, sample, depth, goes_on)
    return _output(paths, [level for level in levels if level is not None]), paths


def _output(paths: Paths, levels: list[LogprobsTensors]) -> SamplerOutput:
    """Tokens behind one another, padded with -1; logprobs of W levels of B rows as those of B * W rows, of which vLLM
    leaves out those behind a request's end."""
    tokens = paths.tokens[:, : int(paths.counts.max())].int()
    if not levels:
        return SamplerOutput(tokens, None)
    # All logprobs (-1) come without ids and ranks: those fields stay empty.
    fields = zip(*(level[:3] for level in levels), strict=True)
    stacked = (torch.stack(f, 1).flatten(0, 1) if f[0].numel() else f[0] for f in fields)
    return SamplerOutput(tokens, LogprobsTensors(*stacked))
