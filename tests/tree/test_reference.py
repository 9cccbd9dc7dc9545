"""The reference attention of trees, row by row against plain attention over the path that the row stands on."""

import math

import pytest
import torch

from vllm_eagle_plugin.tree.attention import Tail, drafting, verifying
from vllm_eagle_plugin.tree.attention.reference import tail_attention
from vllm_eagle_plugin.tree.config import Shape

from .language import Language, grown, random_trees

HEADS, KV_HEADS, DIM, SIZE = 6, 2, 8, 4


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict) -> torch.Tensor:
    """[heads, head_dim] one row, whose own key is the last of keys [n, kv_heads, head_dim]."""
    found = []
    for head in range(HEADS):
        k, v = (t[:, head // (HEADS // KV_HEADS)] for t in (key, value))
        scores = k @ query[head] * options["scale"]
        if cap := options.get("soft_cap"):
            scores = cap * torch.tanh(scores / cap)
        if window := options.get("window"):
            scores[:-window] = -math.inf
        sink = options["sinks"][head : head + 1] if "sinks" in options else scores[:0]
        weights = torch.cat([scores, sink]).softmax(0)[: len(k)]
        found.append(weights @ v)
    return torch.stack(found)


def check(tail: Tail, tails: list[list[int]], rows: int, options: dict) -> None:
    """tails: of each row of each request, in the pass's order, the tail keys on its path."""
    generator = torch.Generator().manual_seed(1)
    batch, most = len(tail.counts), int(tail.context.max()) + 64
    blocks = torch.randperm(batch * (most // SIZE + 1), generator=generator).view(batch, -1).int()
    keys, values = torch.randn(2, blocks.numel(), SIZE, KV_HEADS, DIM, generator=generator)
    query = torch.randn(rows, HEADS, DIM, generator=generator)
    found = tail_attention(query, keys, values, blocks, tail, **options)
    expected = torch.zeros_like(found)
    each = iter(tails)
    for b, count in enumerate(tail.counts.tolist()):
        context = int(tail.context[b])
        for row in range(int(tail.first[b]), int(tail.first[b]) + count):
            at = torch.tensor([*range(context), *(context + key for key in next(each))])
            slots = blocks[b].long()[at // SIZE], at % SIZE
            expected[row] = plain(query[row], keys[slots], values[slots], options)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


OPTIONS = [{}, {"soft_cap": 3.0}, {"window": 3}, {"window": 9}, {"sinks": torch.randn(HEADS)}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "".join(o) or "plain")
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_verify(options: dict, seed: int):
    trees = random_trees(3, 11, 90, seed)
    base = torch.tensor([0, 5, 17])
    counts = torch.tensor([1 + int(trees.counts[0]), 0, 1 + int(trees.counts[2])])
    tail = verifying(trees, base, torch.tensor([2, 20, 30]), counts)
    tails = []
    for b in (0, 2):
        paths: list[list[int]] = [[]]
        for node, parent in enumerate(trees.parents[b, : int(trees.counts[b])].tolist(), 1):
            paths.append([*paths[parent], node - 1])
        tails += paths
    check(tail, tails, 50, {"scale": DIM**-0.5, **options})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "".join(o) or "plain")
def test_rows_that_draft(options: dict):
    _, levels = grown(Language(20, 3), Shape("dynamic", 16, 4, 4), 3)
    paths: list[list[list[int]]] = [[[]] for _ in range(3)]
    for beams in levels:
        k = beams.tokens.shape[1]
        before = beams.drafted - k
        sources = beams.sources.tolist()
        paths = [[[*paths[b][s], before + i] for i, s in enumerate(sources[b])] for b in range(3)]
        tail = drafting(beams.seen, beams.drafted, torch.tensor([1, 6, 12]))
        check(tail, [p for request in paths for p in request], 3 * k, {"scale": DIM**-0.5, **options})
