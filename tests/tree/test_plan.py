"""What requests may draft: by their sampling parameters, and in which sizes."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from vllm_eagle_plugin.errors import UsageError
from vllm_eagle_plugin.tree import WORKER
from vllm_eagle_plugin.tree.budget import Size
from vllm_eagle_plugin.tree.check import make_settings
from vllm_eagle_plugin.tree.config import AdaptiveConfig, Drafting, Shape
from vllm_eagle_plugin.tree.measure import measure
from vllm_eagle_plugin.tree.plan import FREE, NONE, Allowance, Planner, allowance, sizes


@pytest.mark.parametrize(
    ("params", "emitted", "expected"),
    [
        (SamplingParams(), 0, FREE),
        (None, 0, FREE),
        (SamplingParams(min_tokens=9), 4, Allowance(4, reason="min_tokens")),
        (SamplingParams(min_tokens=9), 8, Allowance(0, reason="min_tokens")),
        (SamplingParams(min_tokens=9), 9, FREE),
        (
            SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"])),
            0,
            Allowance(chain=True, reason="structured output"),
        ),
        (SamplingParams(thinking_token_budget=5), 0, Allowance(0, reason="thinking budget")),
    ],
)
def test_what_parameters_allow(params, emitted, expected):
    assert allowance(params, emitted) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape.chain(3), [Size(1, 1), Size(2, 2), Size(3, 3)]),
        (Shape("static", 10, 3, 10, (2, 2, 1)), [Size(2, 1), Size(6, 2, 2), Size(10, 3, 4)]),
        (Shape("dynamic", 8, 3, 3), [Size(3, 1), Size(8, 3, 3)]),
        (
            Shape("auto", 10, 4, 3),
            [Size(1, 1), Size(2, 2), Size(4, 2, 3), Size(4, 3, 3), Size(4, 4)]
            + [Size(n, levels, 3) for n in (8, 10) for levels in (2, 3, 4)],
        ),
    ],
)
def test_sizes_of_shapes(shape, expected):
    assert sizes(shape) == expected


def test_a_plan_heeds_allowances():
    planner = Planner(Drafting(Shape("dynamic", 16, 4, 4), None))
    allowed = [FREE, NONE, Allowance(2, reason="min_tokens"), Allowance(chain=True, reason="structured output")]
    plan = planner.plan(list("abcd"), allowed)
    assert plan.sizes == [Size(16, 4, 4), Size(16, 0, 4), Size(16, 2, 4), Size(16, 4, 4)]
    assert plan.chains == [False, False, False, True]
    assert plan.largest == Size(16, 4, 4)
    planner.plan(list("abcd"), allowed)
    assert planner.report()["fallback_requests"] == {"min_tokens": 1, "structured output": 1}
    planner.fall_back("attention: alien")
    assert planner.plan(["a"], [FREE]).sizes == [Size(4, 4)]
    assert planner.report()["fallback_requests"]["attention: alien"] == 1


def test_a_budget_is_asked_for_those_that_may_draft(monkeypatch):
    planner = Planner(Drafting(Shape.chain(4), AdaptiveConfig(maximum=3)))
    asked = []
    monkeypatch.setattr(planner.budget, "each", lambda requests: asked.extend(requests) or [3, 0])
    plan = planner.plan(list("abc"), [FREE, NONE, FREE])
    assert asked == ["a", "c"]
    assert plan.sizes == [Size(3, 3), Size(3, 0), Size(0, 0)]
    assert [size.nodes for size in planner.budget.sizes] == [1, 2, 3]


def test_a_budget_learns_of_the_size_that_a_request_was_given(monkeypatch):
    planner = Planner(Drafting(Shape("auto", 16, 5, 4), AdaptiveConfig()))
    monkeypatch.setattr(planner.budget, "each", lambda requests: [5, 2])
    seen = []
    monkeypatch.setattr(planner.budget, "observe", lambda *what: seen.append(what))
    planner.plan(list("ab"), [FREE, FREE])
    planner.verified("a", 4, 2, 1)
    planner.verified("b", 0, 0, 0)
    assert seen == [("a", 5, 1)]
    assert planner.report()["tree_nodes"] == {"2": 4}


def test_measured_shares_of_turns(monkeypatch):
    """Slow moments do not make a size look dear."""
    now, slow = [0.0], [1.0]
    monkeypatch.setattr("vllm_eagle_plugin.tree.measure.perf_counter", lambda: now[0])
    turns = []

    def run(n: int) -> None:
        if n == 1:
            turns.append(1)
            slow[0] = 3.0 if len(turns) % 5 == 0 else 1.0
        now[0] += slow[0] * (10 + n) / 1e3

    found = measure(run, [1, 2, 8, 64])
    assert found == pytest.approx({1: 11, 2: 12, 8: 18, 64: 74}, rel=0.01)


def settings(**scheduler) -> SimpleNamespace:
    return SimpleNamespace(
        additional_config={"eagle": {"tree": "auto"}},
        parallel_config=SimpleNamespace(worker_cls="auto"),
        scheduler_config=SimpleNamespace(**{"async_scheduling": None, **scheduler}),
    )


def test_what_the_user_left_open_is_set_and_said_once(caplog):
    config = settings()
    logger = logging.getLogger("vllm.eagle_plugin")
    logger.addHandler(caplog.handler)  # vLLM's loggers hand nothing up
    with caplog.at_level("INFO", logger.name):
        for _ in range(2):
            make_settings(config)
    logger.removeHandler(caplog.handler)
    assert config.parallel_config.worker_cls == WORKER
    assert config.scheduler_config.async_scheduling is False
    assert len({id(r) for r in caplog.records if WORKER in r.getMessage()}) == 1


def test_the_contrary_is_an_error_and_other_configs_are_left_alone():
    with pytest.raises(UsageError, match="asynchronous scheduling"):
        make_settings(settings(async_scheduling=True))
    config = settings()
    config.additional_config = {"other": 1}
    make_settings(config)
    assert config.parallel_config.worker_cls == "auto"
    assert config.scheduler_config.async_scheduling is None
