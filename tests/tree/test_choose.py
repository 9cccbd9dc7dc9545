"""Choosing depth and nodes: by hand, against brute force, and in a language that is known."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_eagle_plugin.tree.choose import Chooser, Limits, Pool, best_size
from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.cost_model import CostModel
from vllm_eagle_plugin.tree.old_grow import Growth, select

CHEAP = CostModel({1: 10.0, 101: 11.0}, {1: 0.1, 100: 0.2}, {1: 0.1})
DEAR = CostModel({1: 10.0, 101: 1010.0}, {1: 3.0, 100: 30.0}, {1: 3.0})


def branching(ms: float) -> CostModel:
    """Cheap, but for branches."""
    return CostModel({1: 10.0, 101: 11.0}, {1: 0.1, 100: 0.2}, {1: 0.1}, branch=ms)


def distribution(*probabilities: float) -> torch.Tensor:
    """A head's log-probabilities: those given, the rest spread over the other tokens of a hundred."""
    others = 100 - len(probabilities)
    return torch.tensor([*probabilities, *[(1 - sum(probabilities)) / others] * others]).log()


def limits(batch: int, nodes: int = 16, levels: int = 4, **more: object) -> Limits:
    return Limits([nodes] * batch, [levels] * batch, [False] * batch, **more)


def drafted(chooser: Chooser, heads: list[torch.Tensor], asked: Limits, shape: Shape) -> tuple[Growth, list[int]]:
    """A growth whose head says the same at every node of a request, and the budgets chosen."""
    growth = Growth(shape, len(heads))
    growth.start(torch.stack(heads))
    while chooser.goes_on(growth, asked):
        growth.extend(torch.stack(heads)[:, None].expand(-1, growth.beams().tokens.shape[1], -1))
    return growth, chooser.budgets(growth, asked).nodes


def test_a_size_by_hand():
    # 1 / 13, 1.9 / 23, 2.4 / 33, 2.5 / 43 tokens per millisecond.
    drafts = Pool(np.array([0.9, 0.5, 0.1]), np.array([False, True, False]))
    assert best_size(drafts, 1, 3.0, DEAR) == (1, pytest.approx(1.9 / 23))
    assert best_size(drafts, 1, 3.0, CHEAP)[0] == 3
    assert best_size(Pool(np.array([]), np.array([], dtype=bool)), 2, 0.0, DEAR) == (0, pytest.approx(2 / 20))
    # 1.9 / 13.01, 2.4 / (13.02 + 5) tokens per millisecond.
    assert best_size(drafts, 1, 3.0, branching(5.0)) == (1, pytest.approx(1.9 / 13.01))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([0.1, 1.0, 5.0]), st.integers(1, 3))
def test_no_other_trees_of_the_candidates_are_expected_to_yield_more(seed: int, row: float, batch: int):
    rng = np.random.default_rng(seed)
    costs = CostModel({1: 10.0, 2: 10.0 + row}, {1: 1.0}, {1: 1.0})
    chooser, asked = Chooser(costs), limits(batch, nodes=3, levels=2)
    growth = Growth(Shape("auto", 4, 2, 2), batch)
    growth.start(torch.tensor(rng.normal(size=(batch, 5)) * 2).float().log_softmax(-1))
    growth.beams()
    growth.extend(torch.tensor(rng.normal(size=(batch, 2, 5)) * 2).float().log_softmax(-1))
    found = growth.candidates().scores.exp().double().sort(-1, descending=True).values.numpy()
    rates = [
        (batch + sum(found[b, :n].sum() for b, n in enumerate(sizes))) / (2.0 + costs.verify(batch + sum(sizes)))
        for sizes in product(range(4), repeat=batch)
    ]
    chosen = chooser.budgets(growth, asked).nodes
    expected = batch + sum(found[b, :n].sum() for b, n in enumerate(chosen))
    assert expected / (2.0 + costs.verify(batch + sum(chosen))) == pytest.approx(max(rates), rel=1e-5)
    assert chooser.gain == pytest.approx(max(rates) / costs.plain(batch), rel=1e-5)
    drawn = select(growth.candidates(), chosen, keep_chain=False)
    assert sum(sum(d.reached) for d in drawn) == pytest.approx(expected - batch, rel=1e-4, abs=1e-6)


SHAPE = Shape("auto", 16, 4, 4)


def test_a_sure_head_drafts_deep_and_narrow_a_vague_one_wide():
    growth, (sure,) = drafted(Chooser(CHEAP), [distribution(0.97, 0.01)], limits(1), SHAPE)
    assert growth.depth == 4
    assert select(growth.candidates(), [sure], keep_chain=False)[0].tree.parents[:4] == (0, 1, 2, 3)
    growth, (vague,) = drafted(Chooser(CHEAP), [distribution(0.3, 0.28, 0.26)], limits(1), SHAPE)
    assert select(growth.candidates(), [vague], keep_chain=False)[0].tree.parents.count(0) == 3


#: Kernels work in blocks of rows: six fill one, two leave it half empty and take longer.
BLOCKS = CostModel({1: 20, 2: 22, 3: 19, 6: 19, 7: 22, 8: 23, 16: 40}, {1: 1.5}, {1: 1.5})


def test_drafts_fill_a_block_of_rows():
    vague = distribution(0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.05)
    assert drafted(Chooser(BLOCKS), [vague], limits(1), Shape("auto", 16, 4, 4, considered=16))[1] == [5]
    # A head that is good for nothing too, where that is cheaper than no drafts at all; and as far as it may.
    never = distribution(*[0.001] * 8)
    assert drafted(Chooser(BLOCKS), [never], limits(1), Shape("auto", 16, 4, 4, considered=16))[1] == [5]
    assert drafted(Chooser(BLOCKS), [vague], limits(1, nodes=3), Shape("auto", 16, 4, 4, considered=16))[1] == [3]


def test_dear_branches_leave_the_chain():
    """Which is deeper than what a tree would have been, and as deep as without branches."""
    head = [distribution(0.6, 0.3)] * 2
    _, cheap = drafted(Chooser(branching(0.01)), head, limits(2), SHAPE)
    chooser = Chooser(branching(50.0))
    growth, dear = drafted(chooser, head, limits(2), SHAPE)
    assert min(cheap) > 4
    assert dear == [4, 4]
    assert growth.widths == [1, 1, 1]
    assert chooser.budgets(growth, limits(2)).chains


def test_a_worthless_head_drafts_one_level_and_verifies_nothing():
    growth, chosen = drafted(Chooser(DEAR), [distribution(0.05, 0.02)] * 3, limits(3), SHAPE)
    assert growth.depth == 1
    assert chosen == [0, 0, 0]


def test_dear_rows_go_to_the_requests_that_use_them():
    heads = [distribution(0.95), distribution(0.2, 0.1), distribution(0.9)]
    growth, chosen = drafted(Chooser(CostModel({1: 10.0, 101: 500.0}, {1: 0.5}, {1: 0.5})), heads, limits(3), SHAPE)
    assert chosen[1] == 0
    assert min(chosen[0], chosen[2]) >= 1
    assert growth.depth > 1


def test_limits_of_each_request_hold():
    heads = [distribution(0.8, 0.15)] * 4
    asked = Limits([16, 2, 16, 0], [4, 4, 1, 4], [False, False, False, True])
    growth, chosen = drafted(Chooser(CHEAP), heads, asked, SHAPE)
    drawn = select(growth.candidates(), chosen, asked.levels, asked.chains, keep_chain=False)
    assert [len(d.tree) for d in drawn] == chosen
    assert chosen[1] <= 2
    assert chosen[3] == 0
    assert max(drawn[2].tree.depths) == 1
    (only,) = drafted(Chooser(CHEAP), heads[:1], Limits([16], [4], [True]), SHAPE)[1]
    assert only == 4


def test_a_trial_is_drafted_even_if_it_does_not_pay():
    heads = [distribution(0.05, 0.02)] * 3
    assert drafted(Chooser(DEAR), heads, limits(3, trials=[0, 2, 0]), SHAPE)[1] == [0, 2, 0]


def test_a_head_that_fails_behind_the_first_level_is_not_followed_again():
    costs = CostModel({1: 10.0, 101: 50.0}, {1: 2.0}, {1: 1.0})
    chooser, depths = Chooser(costs), []
    for _ in range(400):
        growth = Growth(SHAPE, 1)
        growth.start(distribution(0.6)[None])
        while chooser.goes_on(growth, limits(1)):
            growth.extend(distribution(0.02)[None, None].expand(-1, growth.beams().tokens.shape[1], -1))
        chooser.budgets(growth, limits(1))
        depths.append(growth.depth)
    assert depths[0] == 2
    assert 1 < np.mean(depths[50:]) < 1.2  # again now and then, as it may have become better
