"""The clock: costs are told of steps that only decode, and of nothing where ranks must decide alike."""

from __future__ import annotations

import pytest

from vllm_eagle_plugin.tree.clock import Clock
from vllm_eagle_plugin.tree.cost_model import CostModel


def told(clock: Clock, decodes: bool) -> bool:
    """Whether any cost has moved by a step that drafted a trial and verified it, each too quick for these costs."""
    costs = CostModel({1: 1e3, 2: 1e3}, {1: 1e3}, {1: 1e3})
    before = [float(c(1)) for c in (costs.verify, costs.level, costs.first)] + [costs.trial]
    clock.start_step()
    clock.heed(decodes)
    clock.start()
    clock.observe(costs.first, 1)
    clock.start()
    clock.observe(costs.level, 1)
    clock.observe_chain(costs, 1, 2)
    clock.observe_trial(costs)
    clock.observe_step(costs, 1, 2, 0)
    after = [float(c(1)) for c in (costs.verify, costs.level, costs.first)] + [costs.trial]
    moved = [a != b for a, b in zip(after, before, strict=True)]
    assert len(set(moved)) == 1
    return moved[0]


@pytest.mark.parametrize(("runs", "decodes"), [(True, True), (True, False), (False, True), (False, False)])
def test_who_is_told(runs: bool, decodes: bool):
    assert told(Clock(runs), decodes) == (runs and decodes)
