"""Paths through trees, against walking them node by node; and what is moved for them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_eagle_plugin.tree.compact import linear, move, moves, rows, slots
from vllm_eagle_plugin.tree.trees import Trees
from vllm_eagle_plugin.tree.walk import Paths, drawn, greedy

from .language import random_trees


def by_hand(trees: Trees, sampled: torch.Tensor, depth: int) -> Paths:
    """Node by node; `sampled` [B, N + 1]."""
    tokens, nodes, counts = [], [], []
    for b, count in enumerate(trees.counts.tolist()):
        drafts = list(zip(trees.parents[b].tolist(), trees.tokens[b].tolist(), strict=True))[:count]
        path, emitted = [0], [int(sampled[b, 0])]
        while (step := (path[-1], emitted[-1])) in drafts:
            path.append(drafts.index(step) + 1)
            emitted.append(int(sampled[b, path[-1]]))
        more = depth + 1 - len(path)
        tokens.append(emitted + [-1] * more)
        nodes.append(path + [0] * more)
        counts.append(len(path))
    return Paths(*map(torch.tensor, (tokens, nodes, counts)))


def same(found: Paths, expected: Paths) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.tolist() == b.tolist()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 9999), st.booleans())
def test_both_walks_go_where_the_samples_lead(nodes: int, batch: int, seed: int, chains: bool):
    # Few tokens, so that samples often are drafted.
    trees = random_trees(batch, nodes, 3 if chains else 40, seed, chains)
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.randint(3, (batch, nodes + 1), generator=generator)
    children = torch.randint(1, nodes + 1, (batch, nodes + 1), generator=generator)
    sampled = torch.where(torch.rand(batch, nodes + 1, generator=generator) < 0.8, sampled, children)
    sampled[:, 0] = torch.where(trees.counts > 0, trees.tokens[:, 0], sampled[:, 0])
    expected = by_hand(trees, sampled, nodes)
    same(greedy(trees, sampled, nodes), expected)
    asked = []

    def sample(node: torch.Tensor, path: Paths) -> torch.Tensor:
        asked.append(path)
        return sampled.gather(1, node[:, None])[:, 0]

    same(drawn(trees, sample, nodes), expected)
    for level, path in enumerate(asked):
        assert path.tokens.tolist() == expected.tokens[:, :level].tolist()
        assert path.counts.tolist() == expected.counts.clamp(max=level).tolist()
    asked.clear()
    same(drawn(trees, sample, nodes, lambda alive: bool(alive.any())), expected)
    assert len(asked) == int(expected.counts.max())


def test_siblings_that_draft_the_same_token_are_one():
    """A draft vocabulary may name a target's token twice."""
    tokens, parents = torch.tensor([[5, 5, 6, 6]]), torch.tensor([[0, 0, 1, 2]])
    trees = Trees.of(tokens, parents, torch.tensor([4]))
    found = greedy(trees, torch.tensor([[5, 6, 6, 7, 7]]), 3)
    assert found.tokens.tolist() == [[5, 6, 7, -1]]
    assert found.nodes.tolist() == [[0, 1, 3, 0]]
    assert found.counts.tolist() == [3]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 9999))
def test_what_was_accepted_becomes_a_chain(nodes: int, batch: int, seed: int):
    trees = random_trees(batch, nodes, 40, seed)
    sampled = torch.randint(40, (batch, nodes + 1), generator=torch.Generator().manual_seed(seed))
    lucky = trees.tokens.gather(1, torch.randint(nodes, (batch, nodes + 1)))
    found = greedy(trees, torch.where(torch.rand(batch, nodes + 1) < 0.7, lucky, sampled), nodes)
    moved = moves(found)
    # Each row and each slot holds its own number, so that whatever moves is seen.
    first = torch.arange(batch) * (nodes + 3) + 1
    states = torch.arange(batch * (nodes + 3) + 1)
    move(states, rows(moved, first))
    size = 4
    base = torch.randint(0, 9, (batch,))
    count = (9 + nodes) // size + 1
    blocks = (torch.randperm(batch * count) + 1).view(batch, count).int()
    kept = torch.arange((batch * count + 1) * size)
    move(kept, slots(moved, base, blocks, size))
    untouched = torch.ones_like(kept, dtype=torch.bool)
    for b, counted in enumerate(found.counts.tolist()):
        path = found.nodes[b, :counted]
        assert torch.equal(states[first[b] : first[b] + counted], first[b] + path)
        at = base[b] + torch.arange(nodes + 1)
        own = blocks[b, at // size].long() * size + at % size
        assert torch.equal(kept[own[:counted]], own[path])
        untouched[own[:counted]] = False
    assert torch.equal(kept[untouched], torch.arange(len(kept))[untouched])
    assert linear(base, nodes)[:, -1].tolist() == (base + nodes).tolist()
