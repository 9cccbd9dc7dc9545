"""What trees know of themselves, against the same worked out node by node."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_eagle_plugin.tree.config import MOST_NODES
from vllm_eagle_plugin.tree.trees import Trees, visible

from .language import paths, random_trees


def above(trees: Trees, request: int) -> list[set[int]]:
    """Each node and all that it continues but the root, by following parents."""
    found: list[set[int]] = [set()]
    for node in range(1, int(trees.counts[request]) + 1):
        found.append(found[int(trees.parents[request, node - 1])] | {node})
    return found[1:]


def check(trees: Trees) -> None:
    nodes = trees.tokens.shape[1]
    seen = visible(trees.ancestors, nodes)
    for b, count in enumerate(trees.counts.tolist()):
        for node, ancestors in enumerate(above(trees, b), 1):
            assert {i + 1 for i in seen[b, node - 1].nonzero().flatten().tolist()} == ancestors
            assert trees.depths[b, node - 1] == len(ancestors)
        behind = slice(count, nodes)
        assert not trees.tokens[b, behind].any()
        assert not trees.parents[b, behind].any()
        assert (trees.depths[b, behind] == 1).all()
        assert trees.ancestors[b, behind].tolist() == [1 << i for i in range(count, nodes)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, MOST_NODES), st.integers(1, 4), st.integers(0, 9999), st.integers(0, MOST_NODES))
def test_ancestors_depths_and_cuts(nodes: int, batch: int, seed: int, cut: int):
    trees = random_trees(batch, nodes, 200, seed)
    check(trees)
    fewer = trees.first(torch.full((batch,), cut))
    check(fewer)
    for b in range(batch):
        assert paths(fewer, b) == paths(trees, b)[:cut]


def test_chains():
    tokens = torch.tensor([[7, 8, 9], [4, 5, 6]])
    chain = Trees.chain(tokens, torch.tensor([3, 2]))
    check(chain)
    assert [paths(chain, b) for b in range(2)] == [[(7,), (7, 8), (7, 8, 9)], [(4,), (4, 5)]]
    assert chain.positions(torch.tensor([10, 20])).tolist() == [[10, 11, 12, 13], [20, 21, 22, 21]]
    assert chain.chains.all()
    assert Trees.chain(tokens).counts.tolist() == [3, 3]
    forked = Trees.of(tokens, torch.tensor([[0, 1, 1], [0, 1, 1]]), torch.tensor([3, 2]))
    assert forked.chains.tolist() == [False, True]
    check(forked)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8])
def test_a_bound_on_the_depth_is_enough(depth: int):
    tokens = torch.arange(2 * depth).view(1, -1)
    parents = torch.tensor([[*range(depth), *range(depth)]])
    count = torch.tensor([2 * depth])
    for bounded, full in zip(Trees.of(tokens, parents, count, depth), Trees.of(tokens, parents, count), strict=True):
        assert torch.equal(bounded, full)
