"""The cost model finds costs that are known, predicts what it has not seen, and gives the right advice."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm_eagle_plugin.benchmarks import sweep as sweeping
from vllm_eagle_plugin.benchmarks.cost_model import PLAIN, Measured, Shape, advise, chain, decode_speedup, fit, step_ms
from vllm_eagle_plugin.benchmarks.interleave import Block, Trial
from vllm_eagle_plugin.benchmarks.methods import PLAIN as PLAIN_METHOD
from vllm_eagle_plugin.benchmarks.methods import Method, make_method
from vllm_eagle_plugin.benchmarks.session import Step
from vllm_eagle_plugin.benchmarks.speed_schema import Cost
from vllm_eagle_plugin.benchmarks.sweep import Trials, conditional_rates, hold_out, measured_speedup, step_times, sweep

from vllm_eagle_plugin.errors import HeadError, UsageError

from .synthetic import geometric

KNOWN = Cost(
    fixed=20, per_request=1, per_row=0.5, rejecting=2, drafting=0.7, per_draft=1.5, per_draft_request=0.2, rms_error=0
)
SETTINGS = [(chain(k) if k else PLAIN, batch) for k in range(6) for batch in (1, 4, 16)]


def known(shape: Shape, batch: int) -> Measured:
    """By hand, in place of the model's own formula."""
    k = shape.depth
    draft = 0.7 * (k > 0) + k * (1.5 + 0.2 * batch)
    return Measured(20 + batch + 0.5 * batch * shape.rows + 2 * (k > 0) + draft, draft)


def test_known_costs_are_found() -> None:
    found = fit({setting: known(*setting) for setting in SETTINGS})
    assert found.model_dump() == pytest.approx(KNOWN.model_dump(), abs=1e-6)


def test_costs_are_never_negative_and_noise_shows() -> None:
    rng = np.random.default_rng(0)
    noise = {setting: rng.normal(1, 0.1) for setting in SETTINGS}
    noisy = {s: Measured(known(*s).total * noise[s], known(*s).draft * noise[s]) for s in SETTINGS}
    found = fit(noisy)
    assert min(found.model_dump().values()) >= 0
    assert 0.03 < found.rms_error < 0.2
    for shape, batch in SETTINGS:
        assert step_ms(found, shape, batch) == pytest.approx(step_ms(KNOWN, shape, batch), rel=0.15)


def test_trees_have_more_rows_than_depth() -> None:
    tree, line = Shape(3, 9), chain(3)
    assert step_ms(KNOWN, tree, 4) - step_ms(KNOWN, line, 4) == pytest.approx(KNOWN.per_row * 4 * (9 - 4))


def test_too_little_to_fit() -> None:
    with pytest.raises(HeadError, match="step times of 1 settings"):
        fit({(PLAIN, 1): Measured(10.0, 0.0)})


def test_advice() -> None:
    """Worked out by hand: T(0) = 10, T(k) = 10 + 2k + (k > 0) at batch 1; rows become dear at batch 100."""
    cost = Cost(
        fixed=9, per_request=0, per_row=1, rejecting=1, drafting=0, per_draft=1, per_draft_request=0, rms_error=0
    )
    (small, large) = advise(cost, [0.8, 0.5, 0.1], [1, 100])
    lengths = {1: 1.8, 2: 2.2, 3: 2.24}
    speedups = {k: lengths[k] * 10 / (11 + 2 * k) for k in lengths}
    assert small.best_k == max(speedups, key=speedups.get) == 2
    assert small.speedup == pytest.approx(speedups[2])
    assert small.break_even_length == pytest.approx(1.5)
    assert small.speedup_if_perfect == pytest.approx(max((k + 1) * 10 / (11 + 2 * k) for k in lengths))
    assert (large.best_k, large.speedup) == (0, 1.0)
    assert large.break_even_length == pytest.approx((9 + 200 + 1 + 1) / 109)


def trials(lengths_of: int = 3, noise: float = 0.0) -> Trials:
    """Trials of a head whose steps cost what `KNOWN` says."""
    rng, made = np.random.default_rng(0), {}
    for batch in (1, 4):
        for k in range(lengths_of + 1):
            cost = step_ms(KNOWN, chain(k) if k else PLAIN, batch) * rng.normal(1, noise)
            records = geometric(np.random.default_rng(7), 40, k or 1, steps=50)
            if not k:
                records = [r.model_copy(update={"accepted": [], "drafted": [], "plain_steps": 100}) for r in records]
            steps = {r.question: len(r.accepted) or 100 for r in records}
            records = [
                r.model_copy(
                    update={
                        "output_tokens": 1 + (sum(r.accepted) + len(r.accepted) or 100),
                        "ttft": 1.0,
                        "latency": 1.0 + steps[r.question] * cost / 1e3,
                    }
                )
                for r in records
            ]
            draft = known(chain(k), batch).draft if k else 0.0
            step = Step(batch, batch * (k + 1), k > 0, cost, draft, cost - draft, 0.0)
            config = {"num_speculative_tokens": k} if k else None
            made[k, batch] = Trial(Method(f"k={k}", config), batch, [Block(records)], [step] * 9)
    return made


def test_a_k_that_was_left_out_is_predicted() -> None:
    found = hold_out(trials(5))
    assert {(p.num_speculative_tokens, p.concurrency) for p in found} == {(k, b) for k in (1, 2, 3, 4) for b in (1, 4)}
    assert max(abs(p.error) for p in found) < 0.05, "acceptance differs from run to run, costs do not"


def test_a_wrong_model_shows() -> None:
    """Steps that the model cannot explain are mispredicted, and the figures say so."""
    odd = trials(5)
    for key, trial in odd.items():
        if key[0] == 2:
            records = [r.model_copy(update={"latency": 1 + 2 * (r.latency - 1)}) for r in trial.records]
            trial.blocks = [Block(records)]
    errors = {p.num_speculative_tokens: p.error for p in hold_out(odd)}
    assert errors[2] > 0.7
    assert abs(errors[3]) < 0.1


def test_speedup_and_rates_of_trials() -> None:
    made = trials(3)
    length = decode_speedup(KNOWN, chain(3), 1, 1.0)
    tokens = np.mean([a for r in made[3, 1].records for a in r.accepted]) + 1
    assert measured_speedup(made[3, 1], made[0, 1]) == pytest.approx(tokens * length)
    rates = conditional_rates(made)
    assert len(rates) == 3
    assert rates == sorted(rates), "the harder questions drop out first"


def test_only_full_batches_count() -> None:
    made = trials(2)
    made[2, 4].steps += [Step(3, 9, True, 1e6, 0, 0, 0), Step(4, 10, True, 1e6, 0, 0, 0)]
    assert step_times(made)[chain(2), 4].total == pytest.approx(step_ms(KNOWN, chain(2), 4))


def test_bad_requests() -> None:
    ngram = make_method(None, "ngram", 3)
    for head, synthetic, words in ((Method("plain", None), [], "up to k = 0"), (ngram, [4.5], "--synthetic 4.5")):
        with pytest.raises(UsageError, match=words):
            sweep("target", head, [], "builtin", 8, [1], synthetic, {})


def test_batches_that_were_finished_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption before a later batch has anything to show loses that batch alone; of the first, everything."""
    made = trials(3)
    engine = SimpleNamespace(describe=lambda: {"method": "none", "vllm": "0", "target": "t"})
    monkeypatch.setattr(sweeping, "open_workers", lambda *a: nullcontext({PLAIN_METHOD: engine}))
    head = make_method(None, "ngram", 3)

    def run_all(workers: Any, methods: Any, questions: Any, sampling: Any, batch: int, warm: int) -> Any:
        if batch == interrupted:
            raise HeadError("interrupted before anything was finished")
        return {m.name: made[m.k, batch] for m in methods}, None

    monkeypatch.setattr(sweeping, "run_all", run_all)
    interrupted = 4
    result = sweep("target", head, [], "builtin", 8, [1, 4], [], {})
    assert result.partial
    assert "before anything was finished" in result.partial
    assert {r.concurrency for r in result.rows} == {1}
    interrupted = 1
    with pytest.raises(HeadError, match="before anything was finished"):
        sweep("target", head, [], "builtin", 8, [1, 4], [], {})
