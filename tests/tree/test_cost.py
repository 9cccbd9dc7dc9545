"""The cost model: exact between what was measured, steady when corrected."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_eagle_plugin.tree.cost import CostModel, Curve, measure


def model() -> CostModel:
    return CostModel({1: 40.0, 8: 47.0, 16: 63.0}, {1: 2.0, 4: 5.0}, {1: 3.0}, {1: 0.5, 2: 1.0})


def test_straight_lines_between_measurements_and_behind_them():
    costs = model()
    np.testing.assert_allclose(costs.verify([0, 1, 2, 8, 12, 16, 20]), [40, 40, 41, 47, 55, 63, 71])
    assert costs.first(9) == 3.0
    assert costs.plain(2) == pytest.approx(2 / 42)


def test_more_rows_never_cost_less():
    assert Curve({1: 5.0, 2: 4.0, 4: 6.0})([1, 2, 3, 4]).tolist() == [5, 5, 5.5, 6]


@given(
    st.dictionaries(st.integers(1, 300), st.floats(0.01, 1e3), min_size=1, max_size=8),
    st.integers(0, 600),
    st.integers(0, 600),
)
def test_monotone_everywhere(measured: dict[int, float], a: int, b: int):
    curve = Curve(measured)
    assert curve(min(a, b)) <= curve(max(a, b)) + 1e-9


def test_follows_the_steps_it_sees():
    costs = model()
    for _ in range(200):
        costs.verify.observe(8, 94.0)
    assert costs.verify(8) == pytest.approx(94, rel=0.01)
    assert costs.verify(1) == pytest.approx(80, rel=0.01)
    assert costs.level(1) == 2.0


def test_an_outlier_hardly_matters():
    costs = model()
    costs.verify.observe(8, 1e6)
    assert costs.verify(8) == pytest.approx(47 * 1.05)
    costs.verify.observe(8, 0.0)
    assert costs.verify(8) == pytest.approx(47 * 1.05)


def test_tells_branches_from_a_slow_machine():
    costs, rng = model(), np.random.default_rng(0)
    for _ in range(600):
        branches = int(rng.choice([0, 0, 3, 8, 12]))
        rows = 1 + branches
        costs.observe_step(rows, branches, (1.3 * float(model().verify(rows)) + 0.9 * branches) * rng.normal(1, 0.03))
    assert costs.branch == pytest.approx(0.9, abs=0.2)
    assert costs.verify(1) == pytest.approx(52, rel=0.05)
    for _ in range(600):  # not drawn any more: they are forgotten, to be tried again
        costs.observe_step(1, 0, 52.0)
    assert costs.branch < 0.4


def test_numbers_are_the_whole_model():
    costs = model()
    costs.level.observe(4, 7.0)
    costs.observe_step(9, 4, 80.0)
    numbers = costs.numbers()
    assert all(isinstance(n, float) for n in numbers)
    again = CostModel.of(numbers)
    assert again.numbers() == numbers
    assert again.level(3) == costs.level(3)


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="at least one measurement"):
        CostModel({}, {1: 1.0}, {1: 1.0})


def test_measuring_takes_turns_and_runs_each_size_once_to_warm_up():
    runs: list[int] = []
    found = measure(runs.append, [1, 4], repeats=3)
    assert runs == [1, 4] * 4
    assert set(found) == {1, 4}
    assert min(found.values()) >= 0
