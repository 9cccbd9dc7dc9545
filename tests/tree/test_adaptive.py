"""Adaptive draft length: the window's rules exactly, the gain's against every fixed length in simulated streams."""

from collections.abc import Callable

import numpy as np
import pytest

from vllm_eagle_plugin.adaptive import Controller, WindowController, controller
from vllm_eagle_plugin.tree.config import AdaptiveConfig, Shape
from vllm_eagle_plugin.tree.cost_model import CostModel
from vllm_eagle_plugin.tree.gain import GainController

#: Like a small target on two CPU cores: rows are dear, so what pays depends on the batch.
COSTS = CostModel(
    {1: 40, 2: 42, 4: 45, 8: 53, 16: 72, 32: 110, 64: 190, 256: 700}, {1: 4, 8: 6, 32: 14}, {1: 6, 8: 9, 32: 18}
)

#: (request, position) to the probability that a draft is accepted, at each position of a chain; the last goes on.
Stream = Callable[[int, int], list[float]]


def easy(request: int, position: int) -> list[float]:
    return [0.9, 0.88, 0.87]


def middling(request: int, position: int) -> list[float]:
    return [0.7, 0.65, 0.6]


def hard(request: int, position: int) -> list[float]:
    return [0.25, 0.2]


def modest(request: int, position: int) -> list[float]:
    """One draft is worth its while: a tenth more tokens a millisecond. Two are not worth more."""
    return [0.33, 0.25]


def worthless(request: int, position: int) -> list[float]:
    return [0.01]


def mixed(request: int, position: int) -> list[float]:
    return easy(request, position) if request % 3 else hard(request, position)


def topics(request: int, position: int) -> list[float]:
    return easy(request, position) if position // 128 % 2 else hard(request, position)


class Fixed(WindowController):
    def __init__(self, length: int):
        super().__init__(length, length)


def throughput(
    control: Controller,
    stream: Stream,
    batch: int,
    requests: int,
    tokens: int = 256,
    seed: int = 0,
    taught: CostModel | None = None,
) -> float:
    """Tokens per simulated millisecond of `requests` requests, `batch` at a time, drafted as chains.

    `taught` is told how long each step took, with the scatter of a machine that does other things too.
    """
    rng, milliseconds, emitted = np.random.default_rng(seed), 0.0, 0
    scatter, pace = np.random.default_rng(seed + 1), 1.0
    waiting = iter(range(requests))
    running: dict[int, int] = {}
    drafts: dict[int, int] = {}
    while True:
        while len(running) < batch and (new := next(waiting, None)) is not None:
            running[new] = drafts[new] = 0
        if len(running) < batch:  # the last ones, alone, are another question
            return emitted / milliseconds
        rows = batch + sum(drafts[r] for r in running)
        milliseconds += float(COSTS.verify(rows))
        if taught:
            pace *= scatter.normal(1, 0.005)
            taught.verify.observe(rows, float(COSTS.verify(rows)) * pace * scatter.normal(1, 0.04))
        for request in list(running):
            truth, accepted = stream(request, running[request]), 0
            while accepted < drafts[request] and rng.random() < truth[min(accepted, len(truth) - 1)]:
                accepted += 1
            control.observe(str(request), drafts[request], accepted, accepted + 1)
            emitted += accepted + 1
            running[request] += accepted + 1
            if running[request] >= tokens:
                del running[request]
                control.forget(str(request))
        if running:
            limits = control.limits([str(r) for r in running])
            drafts.update(zip(running, limits, strict=True))
            if max(limits):
                first, level = COSTS.first(len(running)), COSTS.level(len(running))
                milliseconds += float(first + (max(limits) - 1) * level)


def gain(**changed: int) -> GainController:
    return GainController(COSTS, Shape.chain(8), **{"minimum": 0, "maximum": 8, **changed})


def compare(stream: Stream, batch: int, requests: int) -> tuple[float, float, float]:
    """Throughput of the gain controller, of the best fixed length and of plain decoding."""
    fixed = [throughput(Fixed(n), stream, batch, requests) for n in range(9)]
    return throughput(gain(), stream, batch, requests), max(fixed), fixed[0]


@pytest.mark.parametrize(
    ("stream", "batch", "requests"), [(easy, 1, 16), (middling, 1, 16), (hard, 1, 16), (easy, 8, 48), (middling, 8, 48)]
)
def test_on_a_steady_stream_gain_is_close_to_the_best_fixed_length(stream: Stream, batch: int, requests: int):
    found, best, _ = compare(stream, batch, requests)
    assert found > 0.95 * best


@pytest.mark.parametrize("wrong", [(1.0, 1.3), (1.25, 1.0)], ids=["drafts look dear", "drafts look cheap"])
@pytest.mark.parametrize("stream", [modest, worthless])
def test_costs_that_were_measured_wrong_are_found_out(wrong: tuple[float, float], stream: Stream):
    """At start-up one row, or all else, took longer than it does: drafting is given up, or begun, for a while."""
    one, more = wrong
    said = {1: 40 * one, **{n: float(COSTS.verify(n)) * more for n in (2, 4, 8, 16)}}
    costs = CostModel(said, {1: 4}, {1: 6})
    found = throughput(GainController(costs, Shape.chain(8), 0, 8), stream, 1, 32, taught=costs)
    best = max(throughput(Fixed(n), stream, 1, 32) for n in range(5))
    assert found > 0.95 * best


@pytest.mark.parametrize(("stream", "batch", "requests"), [(mixed, 1, 32), (topics, 1, 32), (topics, 8, 48)])
def test_on_a_mixed_stream_gain_beats_every_fixed_length(stream: Stream, batch: int, requests: int):
    found, best, _ = compare(stream, batch, requests)
    assert found > best


@pytest.mark.parametrize(("batch", "requests"), [(1, 16), (8, 48), (32, 128)])
def test_a_worthless_head_costs_less_than_three_percent(batch: int, requests: int):
    plain = throughput(Fixed(0), worthless, batch, requests)
    assert throughput(gain(), worthless, batch, requests) > 0.97 * plain


@pytest.mark.parametrize("stream", [easy, middling, hard])
def test_where_the_batch_is_too_large_gain_stops_drafting(stream: Stream):
    found, _, plain = compare(stream, 32, 96)
    assert found > 0.96 * plain


def drive(control: Controller, steps: int, accepted: Callable[[int], int], request: str = "a") -> list[int]:
    """The limits of a lone request, of whose drafts `accepted(limit)` are."""
    limits = []
    for _ in range(steps):
        limits += control.limits([request])
        came = accepted(limits[-1])
        control.observe(request, limits[-1], came, came + 1)
    return limits


def test_trees_are_weighed_by_the_cheapest_size_that_holds_them():
    """Two rows take longer than one, six no longer: a tree of five nodes costs next to nothing."""
    costs = CostModel({1: 20, 2: 24, 5: 24, 6: 20, 9: 28}, {1: 1.0}, {1: 1.0})
    rng = np.random.default_rng(0)
    for shape, drafts in ((Shape("auto", 8, 5, 4), True), (Shape("auto", 3, 3, 1), False)):
        found = drive(GainController(costs, shape, 0, 3), 400, lambda limit: int(limit and rng.random() < 0.15))
        assert (np.mean(np.array(found[200:]) > 0) > 0.9) == drafts


def test_nothing_is_drafted_for_the_sake_of_cheaper_rows():
    """Three rows take less time than one, by as much as a draft takes: a worthless head is left alone all the same."""
    costs = CostModel({1: 21, 2: 22, 3: 19, 6: 19, 8: 23}, {1: 0.5}, {1: 1.8})
    for shape in (Shape("auto", 8, 5, 4), Shape.chain(4)):
        found = drive(GainController(costs, shape, 0, 4), 400, lambda limit: 0)
        assert np.mean(np.array(found[200:]) > 0) < 0.05


def test_gain_comes_back_when_trials_succeed():
    control = gain()
    limits = drive(control, 300, lambda limit: 0)
    assert max(limits[100:]) <= 1
    assert limits[100:].count(1) <= 3
    limits = drive(control, 700, lambda limit: limit)
    assert limits[-1] >= 7
    again = next(i for i, limit in enumerate(limits) if limit >= 4)
    assert again < 64 * 4


def test_trials_become_rarer_while_they_fail():
    control = gain()
    limits = drive(control, 4000, lambda limit: 0)
    at = [i for i, limit in enumerate(limits) if limit][-6:]
    gaps = np.diff(at)
    assert (gaps[1:] >= gaps[:-1]).all()
    assert gaps[-1] == gain().PATIENCE * 64
    assert control.state()["lengths"][0] > 3900


def test_requests_make_their_trials_in_the_same_step():
    control, steps = gain(), []
    requests = [str(r) for r in range(16)]
    for step in range(2000):
        if step % 10 == 0:  # requests come and go
            control.forget(requests.pop(0))
            requests.append(f"new {step}")
        limits = control.limits(requests)
        steps.append(sum(control.trials(requests)))
        for request, limit in zip(requests, limits, strict=True):
            control.observe(request, limit, 0, 1)
    tried = [i for i, trials in enumerate(steps) if trials]
    assert np.diff(tried)[:3].tolist() == [8, 16, 32]
    assert min(np.diff(tried)[3:]) == 64
    assert sum(steps) > len(tried)


def test_trials_that_take_long_are_rarer():
    """Whatever they take, they take no more than their share of the time, once there have been a few."""
    requests, costs, took = [str(r) for r in range(8)], CostModel.of(COSTS.numbers()), []
    costs.trial, control = 20.0, GainController(costs, Shape.chain(8), 0, 8)
    for _ in range(8000):
        limits = control.limits(requests)
        took.append(20.0 if any(limits) else 0.0)
        for request, limit in zip(requests, limits, strict=True):
            control.observe(request, limit, 0, 1)
    step = float(COSTS.verify(8))
    assert sum(took[4000:]) <= control.SHARE * 4000 * step
    assert 0 < sum(took[:500]) < 3 * control.SHARE * 500 * step


def test_what_a_trial_takes_follows_what_it_took():
    costs = CostModel({1: 40.0}, {1: 2.0}, {1: 3.0})
    for _ in range(8):
        costs.observe_trial(20.0)
    assert costs.trial == pytest.approx(20, rel=0.1)
    costs.observe_trial(1e6)  # the machine was away
    assert costs.trial <= 40


def test_a_minimum_is_kept():
    control = gain(minimum=2)
    assert min(drive(control, 300, lambda limit: 0)) == 2
    assert max(drive(control, 100, lambda limit: 0)) <= 3


def test_an_auto_tree_is_limited_only_when_nothing_pays():
    control = GainController(COSTS, Shape("auto", 16, 4, 4), 0, 4)
    assert set(drive(control, 100, lambda limit: min(limit, 2))) == {4}
    assert set(drive(control, 300, lambda limit: 0)[100:]) == {0, 1}


def test_a_chooser_that_draws_nothing_counts_as_rejection():
    control = GainController(COSTS, Shape("auto", 16, 4, 4), 0, 4)
    for _ in range(100):
        control.limits(["a"])
        control.observe("a", 0, 0, 1)
    assert control.limits(["a"]) == [0]


def test_a_request_that_may_not_draft_says_nothing():
    control = GainController(COSTS, Shape("auto", 16, 4, 4), 0, 4)
    control.limits(["a", "b"])
    for _ in range(100):
        control.limits(["a"])
        control.observe("a", 4, 3, 4)
        control.observe("b", 0, 0, 1)
    assert control.limits(["a", "b"]) == [4, 4]


def test_the_same_observations_make_the_same_decisions():
    def decided() -> list[int]:
        rng = np.random.default_rng(3)
        return drive(gain(), 500, lambda limit: int(rng.integers(0, limit + 1)))

    assert decided() == decided()


def test_the_window_by_its_rules():
    control = WindowController(1, 5, window=4)
    # Three quarters accepted is neither above 0.8 nor below 0.5.
    assert drive(control, 8, lambda limit: 3) == [5] * 8
    # With one step of none 9 of the last 20 are, below half; a new window is judged when it holds four steps.
    assert drive(control, 4, lambda limit: 0) == [5, 4, 4, 4]
    control.forget("a")
    assert drive(control, 13, lambda limit: 0) == [5] * 4 + [4] * 4 + [3] * 4 + [2]
    assert drive(control, 12, lambda limit: 0)[-1] == 1
    assert set(drive(control, 9, lambda limit: limit)) == {1, 2, 3}


def test_the_window_gives_a_request_at_zero_another_chance():
    control = WindowController(0, 1, probe_every=10)
    assert drive(control, 20, lambda limit: 0) == [1] * 4 + [0] * 10 + [1] * 4 + [0] * 2
    assert control.state() == {"lengths": {0: 12, 1: 8}, "probes": 1}


def test_what_a_config_makes():
    made = controller(AdaptiveConfig(controller="window", maximum=9), Shape.chain(4), COSTS)
    assert isinstance(made, WindowController)
    assert made.limits(["a"]) == [4]
    assert isinstance(controller(AdaptiveConfig(), Shape.chain(4), COSTS), GainController)
