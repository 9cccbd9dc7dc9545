"""The cost model: exact between what was measured, steady when corrected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_eagle_plugin.tree import cost
from vllm_eagle_plugin.tree.cost import MORE_REPEATS, REPEATS, SECONDS, Curve, measure
from vllm_eagle_plugin.tree.cost_model import CostModel


def model() -> CostModel:
    return CostModel({1: 40.0, 8: 47.0, 16: 63.0}, {1: 2.0, 4: 5.0}, {1: 3.0}, {1: 0.5, 2: 1.0})


def test_straight_lines_between_measurements_and_behind_them():
    costs = model()
    np.testing.assert_allclose(costs.verify([0, 1, 2, 8, 12, 16, 20]), [40, 40, 41, 47, 55, 63, 71])
    assert costs.first(9) == 3.0
    assert costs.plain(2) == pytest.approx(2 / 42)


def test_more_rows_may_cost_less_but_behind_the_last_no_less():
    assert Curve({1: 5.0, 2: 4.0, 4: 6.0})([1, 2, 3, 4]).tolist() == [5, 4, 5, 6]
    assert Curve({1: 5.0, 2: 4.0})([1, 2, 3]).tolist() == [5, 4, 4]


def test_a_part_of_drafting_follows_what_it_sees():
    level = model().level
    for _ in range(200):
        level.observe(4, 10.0)
    assert level(4) == pytest.approx(10, rel=0.01)
    assert level(1) == pytest.approx(4, rel=0.01)
    level.observe(4, 1e6)
    assert level(4) == pytest.approx(10 * 1.05, rel=0.01)


def test_a_slow_machine_is_slow_for_all_sizes():
    """Also for those that are not run meanwhile: else drafting, once begun or given up, would never be so again."""
    costs, rng = model(), np.random.default_rng(0)
    for slow in (1.0, 2.0):
        for _ in range(300):
            costs.verify.observe(8, 47.0 * slow * rng.normal(1, 0.05))
        assert costs.verify(8) == pytest.approx(47 * slow, rel=0.05)
        assert costs.verify(1) == pytest.approx(40 * slow, rel=0.1)
    assert costs.level(1) == 2.0


@pytest.mark.parametrize("said", [36.0, 48.0])
def test_a_size_that_was_measured_wrong_is_found_out(said: float):
    """One row takes 40 ms and two 42; start-up says 40 and something else. Two rows are run now and then."""
    costs, rng, pace = CostModel({1: 40.0, 2: said, 4: said + 4}, {1: 2.0}, {1: 3.0}), np.random.default_rng(0), 1.0
    for step in range(400):
        pace *= rng.normal(1, 0.01)  # whatever else the machine does
        rows = 2 if step % 16 < 2 else 1
        costs.verify.observe(rows, pace * {1: 40.0, 2: 42.0}[rows] * rng.normal(1, 0.04))
    assert costs.verify(2) / costs.verify(1) == pytest.approx(42 / 40, abs=0.03)


def test_steps_beyond_the_last_size_are_expected_to_take_what_the_curve_says():
    costs = CostModel({1: 50.0, 2: 40.0}, {1: 2.0}, {1: 3.0})
    for _ in range(50):
        costs.verify.observe(9, 40.0)
    np.testing.assert_allclose(costs.verify([1, 2, 9]), [50, 40, 40], rtol=1e-6)


def test_work_around_the_target_is_the_same_for_all_sizes():
    """20 ms that start-up did not see do not make a row dearer."""
    costs, rng = model(), np.random.default_rng(0)
    for step in range(600):
        rows = (1, 8, 16)[step % 3]
        costs.verify.observe(rows, float(model().verify(rows)) + 20.0 * rng.normal(1, 0.05))
    assert costs.verify(1) == pytest.approx(60, rel=0.03)
    assert costs.verify(16) - costs.verify(8) == pytest.approx(16, abs=3)


def test_an_outlier_hardly_matters():
    costs = model()
    for _ in range(100):
        costs.verify.observe(8, 47.0)
    before = costs.verify(8) / costs.verify(1)
    for odd in (1e6, 0.0):
        costs.verify.observe(8, odd)
        assert costs.verify(8) == pytest.approx(47, rel=0.05)
        assert costs.verify(8) / costs.verify(1) == pytest.approx(before, rel=0.01)


def test_tells_branches_from_a_slow_machine():
    costs, rng = model(), np.random.default_rng(0)
    for _ in range(600):
        branches = int(rng.choice([0, 0, 3, 8, 12]))
        rows = 1 + branches + int(rng.integers(5))
        ms = (1.3 * float(model().verify(rows)) + 0.9 * branches) * rng.normal(1, 0.03)
        costs.verify.observe(rows, ms, branches)
    assert costs.branch == pytest.approx(0.9, abs=0.2)
    assert costs.verify(1) == pytest.approx(52, rel=0.05)
    for _ in range(600):  # not drawn any more: they are forgotten, to be tried again
        costs.verify.observe(1, 52.0)
    assert costs.branch < 0.4


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1e5), st.integers(0, 8)), max_size=60))
def test_whatever_steps_took_costs_stay_costs(steps: list[tuple[int, float, int]]):
    costs = model()
    for rows, ms, branches in steps:
        costs.verify.observe(rows, ms, min(branches, rows - 1))
    found = costs.verify(np.arange(1, 80))
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert costs.branch >= 0


def test_what_is_never_run_goes_back_towards_what_was_measured():
    costs = model()
    for _ in range(100):
        costs.verify.observe(1, 40.0)
        costs.verify.observe(16, 80.0)
    assert costs.verify(16) > 75
    for _ in range(10_000):
        costs.verify.observe(1, 40.0)
    assert costs.verify(16) < 70


def test_numbers_are_what_was_measured():
    costs = CostModel({1: 40.0, 8: 47.0}, {1: 2.0, 4: 5.0}, {1: 3.0}, branch=0.7)
    numbers = costs.numbers()
    assert all(isinstance(n, float) for n in numbers)
    again = CostModel.of(numbers)
    assert again.numbers() == numbers
    assert again.branch == 0.7
    assert again.level(3) == costs.level(3)
    assert again.verify(5) == costs.verify(5)


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="at least one measurement"):
        CostModel({}, {1: 1.0}, {1: 1.0})


class Machine:
    """Runs that take `ms[rows]`, times `pace` of the turn they are in."""

    def __init__(self, ms: dict[int, float], pace: Callable[[int], float] = lambda turn: 1.0):
        self.ms, self.pace, self.now, self.runs = ms, pace, 0.0, []

    def __call__(self, rows: int) -> None:
        self.now += self.ms[rows] / 1e3 * self.pace(self.runs.count(rows))
        self.runs.append(rows)

    def measure(self, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> dict[int, float]:
        monkeypatch.setattr(cost, "perf_counter", lambda: self.now)
        return measure(self, list(self.ms), **asked)


def test_measuring_takes_turns_and_runs_each_size_once_to_warm_up(monkeypatch: pytest.MonkeyPatch):
    machine = Machine({1: 20.0, 4: 19.0, 64: 90.0})
    assert machine.measure(monkeypatch, small=4) == pytest.approx(machine.ms)
    everyone = 1 + REPEATS
    assert machine.runs == [1, 4, 64] * everyone + [1, 4] * (MORE_REPEATS - REPEATS)


def test_a_slow_moment_makes_no_size_look_dear(monkeypatch: pytest.MonkeyPatch):
    """The machine is slower from turn to turn, up to twice as slow; sizes keep their relation."""
    machine = Machine({1: 20.0, 4: 19.0, 64: 90.0}, lambda turn: 1 + turn / MORE_REPEATS)
    found = machine.measure(monkeypatch, small=4)
    assert found[4] / found[1] == pytest.approx(0.95)
    assert found[64] / found[1] == pytest.approx(4.5)


def test_a_slow_target_is_measured_in_fewer_turns(monkeypatch: pytest.MonkeyPatch):
    machine = Machine({1: 1000.0, 8: 2500.0})
    assert machine.measure(monkeypatch, small=1) == pytest.approx(machine.ms)
    assert machine.runs == [1, 8] * 3 + [1] * (int(SECONDS) - 2)


def test_ranks_take_as_many_turns_as_rank_0_says(monkeypatch: pytest.MonkeyPatch):
    machine = Machine({1: 20.0, 8: 30.0})
    machine.measure(monkeypatch, small=1, agree=lambda turns: turns - 1)
    assert machine.runs == [1, 8] * REPEATS + [1] * (MORE_REPEATS - REPEATS)


def test_sizes_without_small_ones_among_them_are_measured_alike(monkeypatch: pytest.MonkeyPatch):
    machine = Machine({2: 20.0, 8: 30.0})
    assert machine.measure(monkeypatch) == pytest.approx(machine.ms)
    assert machine.runs == [2, 8] * (1 + REPEATS)
