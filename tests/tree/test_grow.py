"""Growing trees: by hand, against brute force, and what holds of every tree."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_eagle_plugin.tree.config import Shape, TreeConfig
from vllm_eagle_plugin.tree.grow import Grown, expand, extent, next_beams, root, select
from vllm_eagle_plugin.tree.topk import CHUNK, best

from .language import Language, grown, paths


def tree(drawn: Grown, request: int = 0) -> list[tuple[int, ...]]:
    return paths(drawn.trees, request)


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_a_dynamic_tree_by_hand():
    shape = Shape("dynamic", 4, 2, 2)
    start = root(torch.zeros(1, 4))
    found = expand(None, start, log(0.1, 0.5, 0.4, 0.0)[None, None], shape)
    beams = next_beams(found, start, shape)
    assert beams is not None
    assert beams.tokens.tolist() == [[1, 2]]
    torch.testing.assert_close(beams.scores.exp(), torch.tensor([[0.5, 0.4]]))
    assert beams.sources.tolist() == [[0, 0]]
    assert beams.seen.tolist() == [[0b01, 0b10]]
    assert (beams.depth, beams.drafted) == (1, 2)
    found = expand(found, beams, torch.stack([log(0.3, 0.25, 0.25, 0.2), log(0.9, 0.1, 0.0, 0.0)])[None], shape)
    assert next_beams(found, beams, shape) is None
    assert found.tokens[:, :2].tolist() == [[1, 2]]
    assert found.parents.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert found.depths.tolist() == [[1, 1, 2, 2, 2, 2]]
    assert found.on_chain.tolist() == [[True, False, True, False, False, False]]
    torch.testing.assert_close(found.scores.exp()[0, [0, 1, 2, 4]], torch.tensor([0.5, 0.4, 0.15, 0.36]))
    # By score alone 0.36 stands third; the chain's second node, 0.15, goes before it.
    assert tree(select(found, 3, keep_chain=False)) == [(1,), (2,), (2, 0)]
    assert tree(select(found, 3)) == [(1,), (1, 0), (2,)]
    assert tree(select(found, 1)) == [(1,)]
    whole = select(found, 5)
    assert whole.trees.parents.tolist() == [[0, 1, 0, 3, 1]]
    torch.testing.assert_close(whole.logprobs.exp()[0, :4], torch.tensor([0.5, 0.3, 0.4, 0.9]))
    torch.testing.assert_close(whole.scores.exp()[0, :4], torch.tensor([0.5, 0.15, 0.4, 0.36]))
    # More columns than candidates.
    assert select(found, 9).trees.counts.tolist() == [6]


def test_a_static_tree_has_its_branches():
    found, _ = grown(Language(11, 1), Shape("static", 20, 3, 20, (3, 2, 1)), 2)
    trees = select(found, 20).trees
    for b in range(2):
        count = int(trees.counts[b])
        assert count == 3 + 6 + 6
        children = np.bincount(trees.parents[b, :count], minlength=count + 1)
        depths = np.array([0, *trees.depths[b, :count].tolist()])
        assert [sorted(set(children[depths == d])) for d in range(4)] == [[3], [2], [1], [0]]


def test_a_static_tree_wider_than_its_slots_narrows_but_reaches_its_depth():
    found, levels = grown(Language(11, 1), Shape("static", 6, 4, 6, (4, 4, 4, 4)), 2)
    assert [beams.depth for beams in levels] == [1, 2, 3]
    assert select(found, 6, torch.tensor([6, 5])).trees.counts.tolist() == [6, 5]


def test_a_chain_is_the_greedy_chain():
    language = Language(300, 2)
    trees = select(grown(language, Shape.chain(5), 3)[0], 5, torch.tensor([5, 5, 2])).trees
    assert trees.chains.all()
    for b in range(3):
        assert trees.tokens[b, : int(trees.counts[b])].tolist() == list(language.chain(b, 5 if b < 2 else 2))


def test_a_flat_head_still_draws_its_chain():
    language = Language(1000, 3, sharpness=0.01)
    found, _ = grown(language, Shape("dynamic", 16, 5, 4), 2)
    drawn = select(found, 16)
    for b in range(2):
        assert tree(drawn, b)[4] == language.chain(b, 5)  # the first nodes are the chain
        assert len(tree(drawn, b)) == 16
        assert max(len(p) for p in tree(select(found, 16, keep_chain=False), b)) < 5


def test_more_children_than_beams_where_nobody_says_how_many():
    """The likeliest of a flat head stand beside each other; beams, which cost something, stay as many."""
    language = Language(50, 4, sharpness=0.5)
    asked, usual = (Shape.of(TreeConfig(kind="dynamic", top_k=k, depth=3), 16) for k in (4, None))
    (narrow, few), (wide, many) = grown(language, asked, 1), grown(language, usual, 1)
    assert [b.tokens.shape[1] for b in few] == [b.tokens.shape[1] for b in many] == [4, 4]
    few, many = select(narrow, 16), select(wide, 16)
    assert few.trees.parents.tolist()[0].count(0) == 4
    assert many.trees.parents.tolist()[0].count(0) > 4
    assert many.scores.exp().sum() > few.scores.exp().sum()


def test_levels_and_counts_limit_each_request_by_itself():
    found, _ = grown(Language(50, 4), Shape("dynamic", 16, 4, 4), 4)
    limits = torch.tensor([0, 5, 16, 16]), torch.tensor([4, 4, 1, 2])
    trees = select(found, 16, *limits).trees
    assert trees.counts.tolist() == [0, 5, 4, 16]
    assert (trees.depths * trees.used).amax(-1).tolist()[2:] == [1, 2]


def test_a_request_that_may_draft_only_a_chain_gets_its_chain():
    language = Language(50, 4)
    found, _ = grown(language, Shape("dynamic", 16, 4, 4), 2)
    drawn = select(found, 16, chains=torch.tensor([False, True]))
    assert drawn.trees.counts.tolist() == [16, 4]
    assert tree(drawn, 1)[-1] == language.chain(1, 4)


def test_tokens_outside_the_draft_vocabulary_are_never_drafted():
    silent = torch.full((2, 9), -torch.inf)
    only = silent.clone()
    only[:, 3], only[0, 7] = 2.0, -3.0
    shape, start = Shape("dynamic", 8, 2, 4), root(only)
    found = expand(None, start, only[:, None], shape)
    beams = next_beams(found, start, shape)
    assert beams is not None
    k = beams.tokens.shape[1]
    found = expand(found, beams, silent[:, None].expand(2, k, 9) * torch.tensor([1.0, torch.nan])[:, None, None], shape)
    drawn = select(found, 8)
    assert [tree(drawn, b) for b in range(2)] == [[(3,), (7,)], [(3,)]]


def test_a_draft_vocabulary_names_the_targets_tokens():
    shape, start = Shape("dynamic", 3, 1, 3), root(torch.zeros(1, 3))
    found = expand(None, start, log(0.2, 0.5, 0.3)[None, None], shape, torch.tensor([40, 50, 60]))
    assert found.tokens.tolist() == [[50, 60, 40]]


@pytest.mark.parametrize("size", [1, 5, CHUNK, 16 * CHUNK, 40 * CHUNK + 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_are_the_best(size: int, dtype: torch.dtype):
    values = torch.randn(3, 2, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    k = min(4, size)
    values[0, 0, -k:] = 9.0  # in the piece that no chunk holds, and ties
    found, at = best(values, k)
    assert torch.equal(found, values.topk(k, -1).values)
    assert torch.equal(values.gather(-1, at), found)
    assert all(len(set(row)) == k for row in at.flatten(0, 1).tolist())


shapes = st.one_of(
    st.builds(Shape.chain, st.integers(1, 6)),
    st.builds(
        lambda kind, k, depth, extra, more: Shape(
            kind, max(1, k * (depth - 1), depth) + extra, depth, k, considered=k + more if more else 0
        ),
        st.sampled_from(["dynamic", "auto"]),
        st.integers(1, 5),
        st.integers(1, 5),
        st.integers(0, 8),
        st.integers(0, 4),
    ),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
        lambda b: st.integers(len(b), 24).map(lambda n: Shape("static", n, len(b), n, tuple(b)))
    ),
)


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(2, 40), st.integers(0, 999), st.sampled_from([0.05, 1.0, 4.0]), st.data())
def test_every_tree(shape: Shape, batch: int, vocabulary: int, seed: int, sharpness: float, data: st.DataObject):
    language = Language(vocabulary, seed, sharpness)
    counts = data.draw(st.lists(st.integers(0, shape.nodes), min_size=batch, max_size=batch))
    found, levels = grown(language, shape, batch)
    assert len(levels) == shape.depth - 1
    if vocabulary >= max(5, shape.considered):  # else nodes have fewer children than asked for
        sizes, widths = extent(shape)
        assert [beams.tokens.shape[1] for beams in levels] == widths
        assert select(found, shape.nodes).trees.counts.tolist() == [sizes[-1]] * batch
    drawn = select(found, shape.nodes, torch.tensor(counts))
    trees = drawn.trees
    assert trees.tokens.shape == (batch, shape.nodes)
    for b in range(batch):
        nodes = tree(drawn, b)
        assert len(nodes) <= counts[b]
        assert len(set(nodes)) == len(nodes)  # no node twice
        chain = language.chain(b, min(shape.depth, counts[b]))
        assert nodes[: len(chain)] == [chain[:i] for i in range(1, len(chain) + 1)]
        scores = drawn.scores[b, : len(nodes)].tolist()
        for path, logprob, score in zip(nodes, drawn.logprobs[b].tolist(), scores, strict=False):
            along = [language.logprob(b, path[: i + 1]) for i in range(len(path))]
            assert np.isclose(logprob, along[-1], atol=1e-4)
            assert np.isclose(score, sum(along), atol=1e-4)
        behind = scores[len(chain) :]
        assert behind == sorted(behind, reverse=True)
        assert all(parent <= i for i, parent in enumerate(trees.parents[b].tolist()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 7), st.booleans())
def test_no_tree_of_the_candidates_is_better(seed: int, budget: int, keep_chain: bool):
    found, _ = grown(Language(6, seed), Shape("dynamic", 7, 3, 2), 1)
    scores, parents = found.scores[0].exp().tolist(), found.parents[0].tolist()
    chain = [i for i, c in enumerate(found.on_chain[0].tolist()) if c]
    required = set(chain[:budget]) if keep_chain else set()
    most = 0.0
    for nodes in map(set, combinations(range(len(scores)), budget)):
        if required <= nodes and all(parents[i] == 0 or parents[i] - 1 in nodes for i in nodes):
            most = max(most, sum(scores[i] for i in nodes))
    drawn = select(found, budget, keep_chain=keep_chain)
    assert drawn.trees.counts.tolist() == [budget]
    assert np.isclose(drawn.scores.exp().sum().item(), most)
