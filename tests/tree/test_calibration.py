"""Calibration: converges to the truth, distrusts a worthless head soon, follows a request and its changes."""

import numpy as np
import pytest
import torch

from vllm_eagle_plugin.tree.calibration import Calibration, Shifts, _trials, log_odds, shifted
from vllm_eagle_plugin.tree.pace import Pace, Spread
from vllm_eagle_plugin.tree.tree import Tree

#: The root's three drafts, then two that continue the first and one that continues the second.
TREE = Tree((5, 6, 7, 5, 8, 9), (0, 0, 0, 1, 1, 2))


def verified(calibration: Calibration, rng: np.random.Generator, truth: float, claim: float, steps: int, request="a"):
    """Steps of a chain of two whose every draft, claimed with `claim`, is accepted with `truth`."""
    for _ in range(steps):
        path = [1, 2][: int((rng.random(2) < truth).cumprod().sum())]
        calibration.observe([claim, claim], Tree.chain((1, 2)), path, request)
        calibration.learn()  # as each step does


def said(calibration: Calibration, claim: float, depth: int = 1) -> float:
    return calibration.probability(torch.tensor([claim]).log(), depth).exp().item()


def test_only_children_of_accepted_nodes_are_trials():
    claims = (0.5, 0.3, 0.1, 0.2, 0.6, 0.9)
    assert _trials(TREE, claims, [1]) == [
        (0.5, 1, 1, 0),
        (0.3, 0, 1, 1),
        (0.1, 0, 1, 1),
        (0.2, 0, 2, 1),
        (0.6, 0, 2, 0),
    ]
    assert [t[1:3] for t in _trials(TREE, claims, [2, 6])] == [(0, 1), (1, 1), (0, 1), (1, 2)]
    assert _trials(Tree((), ()), (), []) == []


def test_a_cell_by_hand():
    shifts = Shifts((2,), prior=4, memory=1e9)
    assert shifts.values().tolist() == [0, 0]
    shifts.add((np.array([1, 1]),), np.array([0.5, 0.5]), np.array([1.0, 1.0]))
    # Four trials as expected, two hits: (4 * 0.5 + 2) / 6.
    np.testing.assert_allclose(shifts.values(), [0, log_odds(4 / 6) - log_odds(0.5)])
    assert shifted(0.5, shifts.values()[1]) == pytest.approx(4 / 6)


def test_counts_fade():
    shifts = Shifts((), prior=4, memory=50)
    for hits in (np.zeros(500), np.ones(500)):
        for hit in hits:
            shifts.add((), np.array(0.5), np.array(hit))
    assert shifted(0.5, shifts.values()) > 0.9


def test_before_anything_is_seen_the_head_is_believed():
    claims = torch.tensor([[0.6, 0.3, 0.05], [0.2, 0.2, 0.2]])
    found = Calibration(4).probability(claims.log(), 2)
    torch.testing.assert_close(found.exp(), claims, rtol=1e-3, atol=1e-4)


def test_siblings_stay_in_order_and_add_up_to_at_most_one():
    calibration = Calibration(4)
    for _ in range(200):
        # The first choice is always wrong, the third always right.
        calibration.observe((0.5, 0.3, 0.1, 0.2, 0.6, 0.9), TREE, [3], "a")
    found = calibration.probability(torch.tensor([0.5, 0.3, 0.1, 0.0]).log(), 1).exp()
    assert (found[1:] <= found[:-1]).all()
    assert found.sum() <= 1 + 1e-5
    assert found[-1] == 0


@pytest.mark.parametrize("requests", [1, 60])
@pytest.mark.parametrize(("claim", "truth"), [(0.9, 0.6), (0.3, 0.85), (0.97, 0.97), (0.02, 0.1)])
def test_converges_to_the_truth(claim: float, truth: float, requests: int):
    calibration, rng = Calibration(4), np.random.default_rng(0)
    for request in map(str, range(requests)):
        verified(calibration, rng, truth, claim, 3000 // requests, request)
        calibration.forget(request)
    assert said(calibration, claim) == pytest.approx(truth, abs=0.03)
    assert said(calibration, claim, 2) == pytest.approx(truth, abs=0.05)


def test_learns_each_depth_and_each_claim_by_itself():
    calibration, rng = Calibration(3), np.random.default_rng(1)
    truths = {0.9: (0.8, 0.5), 0.4: (0.45, 0.2)}
    for _ in range(4000):
        claims = rng.choice([0.9, 0.4], 2)
        hits = [rng.random() < truths[c][i] for i, c in enumerate(claims)]
        calibration.observe(claims.tolist(), Tree.chain((1, 2)), [1, 2][: int(np.cumprod(hits).sum())], "a")
        calibration.learn()
    for claim, (first, second) in truths.items():
        assert said(calibration, claim, 1) == pytest.approx(first, abs=0.06)
        assert said(calibration, claim, 2) == pytest.approx(second, abs=0.08)


def test_a_worthless_head_is_found_out_soon():
    calibration, rng = Calibration(4), np.random.default_rng(2)
    for _ in range(30):
        # Confident claims of any size, nothing ever accepted.
        claims = rng.uniform(0.3, 0.99, 6)
        calibration.observe(claims.tolist(), TREE, [], "a")
        calibration.learn()
    claims = torch.tensor([0.3, 0.7, 0.95])[:, None].log()
    shift = np.array(calibration.shift("a"))
    assert calibration.probability(claims, 1, shift).exp().max() < 0.1
    assert calibration.probability(claims, 1).exp().max() < 0.25  # for the next request, too


def test_requests_differ():
    calibration, rng = Calibration(4), np.random.default_rng(3)
    for _ in range(400):
        verified(calibration, rng, 0.9, 0.7, 1, "easy")
        verified(calibration, rng, 0.3, 0.7, 1, "hard")
    found = calibration.scorer(["easy", "hard", "new"])(torch.full((3, 1, 1), 0.7).log(), 1).exp().flatten()
    assert found[0] == pytest.approx(0.9, abs=0.08)
    assert found[1] == pytest.approx(0.3, abs=0.1)
    assert found[1] < found[2] < found[0]
    calibration.forget("easy")
    assert calibration.shift("easy") == 0


def test_a_change_of_topic_is_noticed():
    rng = np.random.default_rng(4)
    pace = Pace(Spread())
    for _ in range(300):
        pace.add([0.7], [float(rng.random() < 0.7)])
    resets = pace.resets
    assert resets <= 3
    for _ in range(25):
        pace.add([0.7], [float(rng.random() < 0.05)])
    assert pace.resets > resets
    assert shifted(0.7, pace.shift) < 0.3


@pytest.mark.parametrize(("truths", "least", "most"), [((0.4,), 30, 101), ((0.1, 0.8), 3, 6)])
def test_what_all_requests_do_counts_as_far_as_they_are_alike(truths: tuple[float, ...], least: float, most: float):
    spread, rng = Spread(), np.random.default_rng(6)
    for request in range(60):
        pace = Pace(spread)
        for _ in range(50):
            pace.add([float(np.mean(truths))], [float(rng.random() < truths[request % len(truths)])])
        pace.end()
    assert least < spread.prior < most


def test_bad_luck_is_not_a_hard_request_where_requests_are_alike():
    spread = Spread()
    before = Pace(spread)
    before.add([0.3] * 8, [0.0] * 8)
    for _ in range(60):  # three of ten, in every window
        spread.add([0.3] * 30, [1.0] * 9 + [0.0] * 21)
    after = Pace(spread)
    after.add([0.3] * 8, [0.0] * 8)
    assert before.shift < after.shift < 0


def test_the_same_observations_make_the_same_calibration():
    def made() -> torch.Tensor:
        calibration = Calibration(4)
        verified(calibration, np.random.default_rng(5), 0.6, 0.8, 50)
        return calibration.scorer(["a"])(torch.linspace(-5, -0.01, 20)[None, :, None], 2)

    assert torch.equal(made(), made())
