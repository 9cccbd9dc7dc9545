"""Growing trees: by hand, against brute force, and what holds of every tree."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_eagle_plugin.tree.config import Shape, TreeConfig
from vllm_eagle_plugin.tree.old_grow import Drawn, Growth, extent, select
from vllm_eagle_plugin.tree.topk import CHUNK, best
from vllm_eagle_plugin.tree.tree import Tree


class Language:
    """A head whose distribution after each path is random, and the same each time."""

    def __init__(self, vocabulary: int, seed: int, sharpness: float = 2.0):
        self.vocabulary, self.seed, self.sharpness = vocabulary, seed, sharpness

    def __call__(self, request: int, path: tuple[int, ...]) -> torch.Tensor:
        rng = np.random.default_rng([self.seed, request, *(t + 1 for t in path)])
        return torch.tensor(self.sharpness * rng.normal(size=self.vocabulary)).float().log_softmax(-1)

    def chain(self, request: int, depth: int) -> tuple[int, ...]:
        path: tuple[int, ...] = ()
        for _ in range(depth):
            path += (int(self(request, path).argmax()),)
        return path


def grown(language: Language, shape: Shape, batch: int, levels: int | None = None, **more: object) -> Growth:
    """A whole growth. Each beam's path is read off what it sees, so wrong visibility draws a wrong tree."""
    growth = Growth(shape, batch, levels, **more)
    growth.start(torch.stack([language(b, ()) for b in range(batch)]))
    rows: list[torch.Tensor] = []
    before = [[()] for _ in range(batch)]
    while (beams := growth.beams()) is not None:
        assert beams is growth.beams()
        rows.append(beams.tokens)
        tail = torch.cat(rows, 1)
        assert beams.visible.shape == (*beams.tokens.shape, tail.shape[1])
        paths = [[tuple(tail[b][seen].tolist()) for seen in beams.visible[b]] for b in range(batch)]
        for b in range(batch):
            for path, source in zip(paths[b], beams.sources[b].tolist(), strict=True):
                assert len(path) == beams.depth
                assert path[:-1] == before[b][source]
        before = paths
        growth.extend(torch.stack([torch.stack([language(b, p) for p in paths[b]]) for b in range(batch)]))
    assert sum(growth.widths) <= shape.nodes
    return growth


def paths(drawn: Drawn) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(drawn.tree.tokens, drawn.tree.parents, strict=True):
        found.append((*found[parent], token))
    return found[1:]


def tree_above(tree: Tree, node: int) -> set[int]:
    """What a node continues."""
    return set(np.flatnonzero(tree.ancestors[node]).tolist())


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_a_dynamic_tree_by_hand():
    growth = Growth(Shape("dynamic", 4, 2, 2), 1)
    growth.start(log(0.1, 0.5, 0.4, 0.0)[None])
    beams = growth.beams()
    assert beams.tokens.tolist() == [[1, 2]]
    torch.testing.assert_close(beams.scores.exp(), torch.tensor([[0.5, 0.4]]))
    assert beams.sources.tolist() == [[0, 0]]
    assert beams.visible.tolist() == [[[True, False], [False, True]]]
    assert beams.depth == 1
    growth.extend(torch.stack([log(0.3, 0.25, 0.25, 0.2), log(0.9, 0.1, 0.0, 0.0)])[None])
    assert growth.beams() is None
    found = growth.candidates()
    assert found.tokens[:, :2].tolist() == [[1, 2]]
    assert found.parents.tolist() == [[-1, -1, 0, 0, 1, 1]]
    assert found.depths.tolist() == [[1, 1, 2, 2, 2, 2]]
    assert found.on_chain.tolist() == [[True, False, True, False, False, False]]
    torch.testing.assert_close(found.scores.exp()[0, [0, 1, 2, 4]], torch.tensor([0.5, 0.4, 0.15, 0.36]))
    # By score alone 0.36 stands third; the chain's second node, 0.15, takes the place of the worst other.
    assert paths(select(found, [3], keep_chain=False)[0]) == [(1,), (2,), (2, 0)]
    assert paths(select(found, [3])[0]) == [(1,), (1, 0), (2,)]
    assert paths(select(found, [1])[0]) == [(1,)]
    assert select(found, [4])[0].tree.parents == (0, 1, 0, 3)
    np.testing.assert_allclose(select(found, [4])[0].claims, [0.5, 0.3, 0.4, 0.9], rtol=1e-5)
    np.testing.assert_allclose(select(found, [4])[0].reached, [0.5, 0.15, 0.4, 0.36], rtol=1e-5)


def test_a_static_tree_has_its_branches():
    growth = grown(Language(11, 1), Shape("static", 20, 3, 20, (3, 2, 1)), 2)
    for drawn in select(growth.candidates(), [20, 20]):
        tree = drawn.tree
        assert len(tree) == 3 + 6 + 6
        children = np.bincount(tree.parents, minlength=len(tree) + 1)
        assert [sorted(set(children[tree.depths == d])) for d in range(4)] == [[3], [2], [1], [0]]


def test_a_static_tree_wider_than_its_slots_narrows_but_reaches_its_depth():
    growth = grown(Language(11, 1), Shape("static", 6, 4, 6, (4, 4, 4, 4)), 2)
    assert growth.depth == 4
    assert [len(d.tree) for d in select(growth.candidates(), [6, 5])] == [6, 5]


def test_a_chain_is_the_greedy_chain():
    language = Language(300, 2)
    for b, drawn in enumerate(select(grown(language, Shape.chain(5), 3).candidates(), [5, 5, 2])):
        assert drawn.tree.is_chain
        assert drawn.tree.tokens == language.chain(b, 5 if b < 2 else 2)


def test_a_flat_head_still_draws_its_chain():
    language = Language(1000, 3, sharpness=0.01)
    growth = grown(language, Shape("dynamic", 16, 5, 4), 2)
    for b, drawn in enumerate(select(growth.candidates(), [16, 16])):
        assert language.chain(b, 5) in paths(drawn)
        assert len(drawn.tree) == 16
    assert max(len(p) for d in select(growth.candidates(), [16, 16], keep_chain=False) for p in paths(d)) < 5


def test_more_children_than_beams_where_nobody_says_how_many():
    """The likeliest of a flat head stand beside each other; beams, which cost something, stay as many."""
    language = Language(50, 4, sharpness=0.5)
    asked, usual = (Shape.of(TreeConfig(kind="dynamic", top_k=k, depth=3), 16) for k in (4, None))
    narrow, wide = grown(language, asked, 1), grown(language, usual, 1)
    assert narrow.widths == wide.widths == [4, 4]
    (few,), (many,) = select(narrow.candidates(), [16]), select(wide.candidates(), [16])
    assert few.tree.parents.count(0) == 4
    assert many.tree.parents.count(0) > 4
    assert sum(many.reached) > sum(few.reached)


def test_levels_and_budgets_limit_each_request_by_itself():
    growth = grown(Language(50, 4), Shape("dynamic", 16, 4, 4), 4)
    drawn = select(growth.candidates(), [0, 5, 16, 16], levels=[4, 4, 1, 2])
    assert [len(d.tree) for d in drawn] == [0, 5, 4, 16]
    assert [int(d.tree.depths.max()) for d in drawn][2:] == [1, 2]
    assert drawn[0].claims == ()
    assert grown(Language(50, 4), Shape("dynamic", 16, 4, 4), 4, levels=2).depth == 2


def test_a_request_that_may_draft_only_a_chain_gets_its_chain():
    language = Language(50, 4)
    growth = grown(language, Shape("dynamic", 16, 4, 4), 2)
    tree, chain = select(growth.candidates(), [16, 16], chains=[False, True])
    assert len(tree.tree) == 16
    assert chain.tree.is_chain
    assert chain.tree.tokens == language.chain(1, 4)


def test_tokens_outside_the_draft_vocabulary_are_never_drafted():
    growth = Growth(Shape("dynamic", 8, 2, 4), 2)
    silent = torch.full((2, 9), -torch.inf)
    only = silent.clone()
    only[:, 3], only[0, 7] = -0.1, -3.0
    growth.start(only)
    k = growth.beams().tokens.shape[1]
    growth.extend(silent[:, None].expand(2, k, 9) * torch.tensor([1.0, torch.nan])[:, None, None])
    assert [d.tree.tokens for d in select(growth.candidates(), [8, 8])] == [(3, 7), (3,)]


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
    budgets = data.draw(st.lists(st.integers(0, shape.nodes), min_size=batch, max_size=batch))
    growth = grown(language, shape, batch)
    assert growth.depth == shape.depth
    if vocabulary >= max(5, shape.considered):  # else nodes have fewer children than asked for
        sizes, widths = extent(shape)
        assert growth.widths == widths
        assert len(select(growth.candidates(), [shape.nodes] * batch)[0].tree) == sizes[-1]
    for b, drawn in enumerate(select(growth.candidates(), budgets)):
        tree = drawn.tree
        found = paths(drawn)
        assert len(tree) <= budgets[b]
        assert len(set(found)) == len(found)  # no node twice
        if budgets[b] >= shape.depth:
            assert language.chain(b, shape.depth) in found
        for path, claim, reached in zip(found, drawn.claims, drawn.reached, strict=True):
            along = [language(b, path[:i])[path[i]].item() for i in range(len(path))]
            assert np.isclose(np.log(claim), along[-1], atol=1e-4)
            assert np.isclose(np.log(reached), sum(along), atol=1e-4)
        # Depth first, better children first; each cut-off prefix is a tree too.
        likely = [*map(float, (1, *drawn.reached))]
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(tree.parents, 1):
            assert parent == node - 1 or parent in tree_above(tree, node - 1)
            children.setdefault(parent, []).append(node)
        for nodes in children.values():
            assert [likely[n] for n in nodes] == sorted((likely[n] for n in nodes), reverse=True)
        for n in range(len(tree)):
            assert tree.first(n).parents == tree.parents[:n]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 7), st.booleans())
def test_no_tree_of_the_candidates_is_better(seed: int, budget: int, keep_chain: bool):
    growth = grown(Language(6, seed), Shape("dynamic", 7, 3, 2), 1)
    found = growth.candidates()
    scores, parents = found.scores[0].exp().tolist(), found.parents[0].tolist()
    chain = {i for i, c in enumerate(found.on_chain[0].tolist()) if c}
    required = chain if keep_chain and budget >= len(chain) else set()
    most = 0.0
    for nodes in map(set, combinations(range(len(scores)), budget)):
        if required <= nodes and all(parents[i] == -1 or parents[i] in nodes for i in nodes):
            most = max(most, sum(scores[i] for i in nodes))
    (drawn,) = select(found, [budget], keep_chain=keep_chain)
    assert len(drawn.tree) == budget
    assert np.isclose(sum(drawn.reached), most)
