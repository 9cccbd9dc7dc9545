"""The budget against every fixed size and plain decoding, in simulation; and its rules by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from vllm_eagle_plugin.tree.budget import Budget, Curve, Size, StepTimes

from .simulation import FLAT, MACHINES, STEEP, WORLDS, Fixed, Grown, Machine, run

CHAIN = [Size(n, n) for n in range(1, 9)]
TREES = [Size(1, 1), Size(3, 2, 4), Size(4, 4, 4), Size(8, 2, 4), Size(16, 3, 4), Size(24, 5, 4)]
FREE = Machine({1: 1.0}, {1: 0.0})


class Chosen:
    """A budget as a simulation's policy. `whole`: one size for the batch."""

    def __init__(self, sizes: Sequence[Size], machine: Machine, whole: bool = False, told: Machine | None = None):
        told = told or machine
        self.budget = Budget(sizes, StepTimes(told.measured(), told.level))
        self.whole, self.heeds_time = whole, told is machine
        self.given: dict[str, int] = {}
        self.history: list[int] = []

    def plan(self, requests: Sequence[str]) -> tuple[Sequence[int], Sequence[int]]:
        chosen = [self.budget.whole(requests)] * len(requests) if self.whole else self.budget.each(requests)
        self.given = dict(zip(requests, chosen, strict=True))
        self.history += chosen
        sizes = [self.budget.sizes[n - 1] if n else Size(0, 0) for n in chosen]
        return [size.nodes for size in sizes], [size.levels for size in sizes]

    def cut(self, grown: Grown, nodes: Sequence[int], levels: Sequence[int], drafting: float) -> Sequence[int]:
        return nodes

    def observe(self, request: str, nodes: int, levels: int, accepted: int) -> None:
        self.budget.observe(request, self.given[request], accepted)

    def observe_step(self, batch: int, rows: int, levels: int, verifying: float, drafting: float) -> None:
        if self.heeds_time:
            self.budget.times.observe(rows, verifying)

    def forget(self, request: str) -> None:
        self.budget.forget(request)


@cache
def fixed(world: str, machine: str, batch: int, trees: bool) -> float:
    """Tokens per millisecond of the best fixed size, or of none."""
    quiet = replace(MACHINES[machine], noise=0, wander=0, wrong={})
    sizes = [Size(0, 0), *(TREES[1:] if trees else [CHAIN[i] for i in (0, 1, 3, 5)])]
    shape = {"beams": 4, "children": 8} if trees else {}
    return max(run(Fixed(*size[:2]), WORLDS[world], quiet, batch, 8 + batch, **shape) for size in sizes)


def share(
    world: str, machine: str, batch: int, requests: int, told: Machine | None = None, trees: bool = False
) -> float:
    """Tokens per millisecond of a budget, as a share of the best fixed size's."""
    policy = Chosen(TREES if trees else CHAIN, MACHINES[machine], whole=trees, told=told)
    shape = {"beams": 4, "children": 8} if trees else {}
    found = run(policy, WORLDS[world], MACHINES[machine], batch, requests, **shape)
    return found / fixed(world, machine, batch, trees)


@pytest.mark.parametrize(
    ("world", "machine", "batch", "requests"),
    [
        ("easy", "steep", 1, 8),
        ("hard", "steep", 1, 12),
        ("middling", "blocks", 1, 12),
        ("T=1", "flat", 1, 12),
        ("easy", "flat", 8, 24),
        ("hard", "slowing", 8, 24),
        ("middling", "noisy", 1, 12),
        ("hard", "one row said dear", 1, 12),
        ("hard", "more rows said dear", 1, 12),
    ],
)
def test_a_chain_is_as_long_as_the_best_fixed_one(world: str, machine: str, batch: int, requests: int) -> None:
    assert share(world, machine, batch, requests) > 0.95


@pytest.mark.parametrize(("world", "machine"), [("hard", "steep"), ("easy", "flat")])
def test_a_tree_for_all_is_as_large_as_the_best_fixed_one(world: str, machine: str) -> None:
    assert share(world, machine, 1, 10, trees=True) > 0.93


@pytest.mark.parametrize(("batch", "requests"), [(1, 20), (8, 40)])
def test_where_requests_differ_each_has_its_own(batch: int, requests: int) -> None:
    assert share("mixed", "steep", batch, requests) > 1.02


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("machine", "batch"), [(STEEP, 1), (FLAT, 1), (STEEP, 8), (FLAT, 32)])
def test_a_worthless_head_costs_less_than_three_percent(machine: Machine, batch: int, whole: bool) -> None:
    policy = Chosen(CHAIN, machine, whole)
    assert run(policy, WORLDS["worthless"], machine, batch, 8 + 2 * batch) > 0.97 * batch / machine.step(batch)


@pytest.mark.parametrize(("world", "batch"), [("hard", 1), ("mixed", 8)])
def test_one_that_believes_rows_to_be_free_is_slower(world: str, batch: int) -> None:
    """So the comparisons above can fail."""
    assert share(world, "steep", batch, 4 + batch, told=FREE) < 0.9


def test_one_that_is_told_nothing_of_acceptance_drafts_for_a_worthless_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "observe", lambda *seen: None)
    assert run(Chosen(CHAIN, STEEP), WORLDS["worthless"], STEEP, 1, 8) < 0.97 / STEEP.step(1)


def drive(budget: Budget, steps: int, chance: float, request: str = "a", whole: bool = False) -> list[int]:
    """The sizes of a lone request whose drafts are each accepted with the same chance."""
    rng, found = np.random.default_rng(0), []
    for _ in range(steps):
        found.append(budget.whole([request]) if whole else budget.each([request])[0])
        levels = budget.sizes[found[-1] - 1].levels if found[-1] else 0
        accepted = next((i for i in range(levels) if rng.random() >= chance), levels)
        budget.observe(request, found[-1], accepted)
    return found


def budget(machine: Machine = STEEP, **asked: int) -> Budget:
    return Budget(CHAIN, StepTimes(machine.verify, machine.level), **asked)


@pytest.mark.parametrize("whole", [False, True])
def test_where_rows_are_free_the_largest_is_chosen(whole: bool) -> None:
    flat = Machine({1: 8.0, 64: 8.05}, {1: 0.01})
    assert np.mean(drive(budget(flat), 600, 0.85, whole=whole)[200:]) > 7.5
    dear = Machine({1: 8.0, 9: 72.0}, {1: 0.01})
    assert np.mean(drive(budget(dear), 600, 0.85, whole=whole)[200:]) < 1.5


def test_the_same_observations_make_the_same_decisions() -> None:
    for whole in (False, True):
        decided = []
        for _ in range(2):
            policy = Chosen(CHAIN, STEEP, whole)
            run(policy, WORLDS["mixed"], STEEP, 4, 8)
            decided.append(policy.history)
        assert decided[0] == decided[1]


def test_a_minimum_is_kept() -> None:
    assert min(drive(budget(minimum=2), 300, 0.0)) == 2
    trees = Budget(TREES, StepTimes(STEEP.verify, STEEP.level), minimum=4)
    assert {trees.sizes[n - 1].nodes >= 4 for n in drive(trees, 300, 0.0)} == {True}


def test_trials_become_rarer_and_end_when_they_succeed() -> None:
    control = budget()
    at = np.flatnonzero(drive(control, 3000, 0.0))
    assert max(np.diff(at)) == control.RARE * control.probe_every
    assert len(at) < 60
    woken = drive(control, 3000, 0.9)
    assert min(woken[-100:]) > 0
    assert control.report()["trials"] > 5


def test_a_request_asleep_does_not_keep_others_from_drafting() -> None:
    control = budget()
    for _ in range(600):
        good, bad = control.each(["good", "bad"])
        control.observe("good", good, good)
        control.observe("bad", bad, 0)
    assert control.report()["sizes"][0][2] > 400
    good, bad = control.each(["good", "bad"])
    assert good > 2
    assert bad == 0


def test_nothing_is_kept_of_requests_that_ended() -> None:
    control = budget()
    drive(control, 10, 0.5)
    assert control.acceptance.request
    control.forget("a")
    control.forget("never seen")
    assert not control.acceptance.request


def test_where_nobody_drafts_nothing_is_chosen() -> None:
    assert budget().each([]) == []
    assert budget().whole([]) == 0


def test_numbers_of_sizes() -> None:
    trees = Budget(TREES, StepTimes({1: 1.0}, {1: 0.0}))
    assert [trees.number(n) for n in (0, 1, 2, 3, 7, 8, 30)] == [0, 1, 1, 2, 3, 4, 6]
    assert trees.number(24, 2) == 4
    assert budget().number(5) == 5


def test_a_machine_that_slows_down_is_not_a_size_that_got_dear() -> None:
    curve = Curve({1: 10.0, 2: 11.0, 4: 13.0, 8: 17.0})
    for _ in range(300):
        curve.observe(4, 1.3 * 13.0)
    assert curve([1, 4, 8]) == pytest.approx(1.3 * np.array([10.0, 13.0, 17.0]), rel=0.02)


def test_a_size_that_was_measured_wrong_is_found_out() -> None:
    curve = Curve({1: 15.0, 2: 11.0, 4: 13.0})
    for step in range(400):
        rows = 1 if step % 4 else 4
        curve.observe(rows, 10.0 if rows == 1 else 13.0)
    assert float(curve(1) / curve(4)) == pytest.approx(10 / 13, rel=0.03)


def test_a_curve_between_and_behind_what_is_known() -> None:
    curve = Curve({2: 10.0, 4: 14.0})
    assert curve([1, 2, 3, 4, 6, 300]).tolist() == [10, 10, 12, 14, 18, 14 + 2 * 296]
    assert float(Curve({4: 3.0})(100)) == 3
    curve.observe(3, 1e9)  # the machine was away
    assert float(curve(3)) < 13
    with pytest.raises(ValueError, match="at least one"):
        Curve({})


def test_what_drafting_takes() -> None:
    times = StepTimes({1: 10.0}, {1: 1.0, 4: 4.0, 8: 8.0})
    assert times.drafting(2, Size(8, 3, 4)) == 2 + 2 * 8
    assert times.drafting(2, Size(0, 0)) == 0
    for _ in range(200):
        times.observe_drafting(2, Size(8, 3, 4), 36.0)
    assert times.drafting(2, Size(8, 3, 4)) == pytest.approx(36, rel=0.05)
