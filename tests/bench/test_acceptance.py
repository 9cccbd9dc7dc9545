"""In the real engine, against heads whose acceptance is known: every figure is exact."""

from __future__ import annotations

import pytest
from vllm_eagle_plugin.benchmarks.acceptance import measure
from vllm_eagle_plugin.benchmarks.engine import Engine
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.records import Record
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult, Workload
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.trace import explain

from vllm_eagle_plugin.errors import HeadError

from .language import K, Language, text

pytestmark = pytest.mark.engine
TOKENS = 40


def questions(count: int = 12) -> list[Question]:
    return [
        Question(i, f"q{i}", "even" if i % 2 == 0 else "odd", token_ids=tuple([i] * (3 if i < 4 else 40)))
        for i in range(count)
    ]


def workload(**changes: object) -> Workload:
    fields = {
        "target": "target", "method": "eagle", "num_speculative_tokens": K, "prompts": "test", "prompts_sha256": "",
        "temperature": 0.0, "max_tokens": TOKENS, "concurrency": 4, "all_turns": False, "seeds": [0],
    }  # fmt: skip
    return Workload.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def result(engine: Engine) -> AcceptanceResult:
    return measure(engine, questions(), Sampling(max_tokens=TOKENS), 4, workload())


def test_every_step_is_as_the_languages_say(result: AcceptanceResult, language: Language) -> None:
    kinds = set()
    for record in result.eagle.requests:
        prompt = list(questions()[record.question].token_ids or ())
        assert record.token_ids == language.answer(prompt, TOKENS)
        assert record.accepted == language.accepted(prompt, TOKENS)
        assert record.drafted == [K] * len(record.accepted)
        assert record.plain_steps == 0
        assert record.trimmed == 1 + sum(a + 1 for a in record.accepted) - TOKENS
        kinds |= set(record.accepted)
    assert kinds == set(range(K + 1)), "the languages should differ so that every number of drafts is accepted"
    assert {r.trimmed for r in result.eagle.requests} > {0}


def test_figures_follow(result: AcceptanceResult, language: Language) -> None:
    steps = {q.index: language.accepted(list(q.token_ids or ()), TOKENS) for q in questions()}
    everything = [a for taken in steps.values() for a in taken]
    drafts, accepted = len(everything), sum(everything)
    at = [sum(a >= i for a in everything) for i in (1, 2, 3)]
    found = result.eagle.acceptance
    assert result.spec_decode_acceptance_length == 1 + accepted / drafts
    assert result.spec_decode_acceptance_rate == 100 * accepted / (K * drafts)
    assert result.spec_decode_per_position_acceptance_rates == [n / drafts for n in at]
    assert [f.value for f in found.conditional] == [at[0] / drafts, at[1] / at[0], at[2] / at[1]]
    assert found.expected_length.value == pytest.approx(1 + accepted / drafts)
    trimmed = {q: 1 + sum(taken) + len(taken) - TOKENS for q, taken in steps.items()}
    assert found.trimmed_tokens == sum(trimmed.values())
    assert found.trimmed_accepted_tokens == sum(max(0, t - 1) for t in trimmed.values())
    assert found.emitted_length.value == len(steps) * (TOKENS - 1) / drafts
    for group, members in zip(result.eagle.by_category, (range(0, 12, 2), range(1, 12, 2)), strict=True):
        taken = [a for i in members for a in steps[i]]
        assert group.acceptance.acceptance_length.value == 1 + sum(taken) / len(taken)
    short, long = result.eagle.by_prompt_length
    assert (short.name, short.acceptance.requests, long.name, long.acceptance.requests) == ("0 to 31", 4, "32 to 63", 8)


def test_equal_to_the_counters_of_vllm(engine: Engine, result: AcceptanceResult) -> None:
    """Of the same requests, to the last digit; `measure` compares them itself and would say so."""
    assert not result.eagle.notes
    before = engine.counters()
    again = measure(engine, questions(), Sampling(max_tokens=TOKENS), 4, workload())
    grown = engine.counters() - before
    warm_up = measure_warm_up(engine)
    drafts, accepted = grown.drafts - warm_up[0], grown.accepted - warm_up[1]
    assert again.spec_decode_acceptance_length == 1 + accepted / drafts
    assert (again.spec_decode_num_drafts, again.spec_decode_accepted_tokens) == (drafts, accepted)


def measure_warm_up(engine: Engine) -> tuple[int, int]:
    before = engine.counters()
    engine.run(questions()[:1], Sampling(max_tokens=8), 1, lambda record: None)
    grown = engine.counters() - before
    return grown.drafts, grown.accepted


def test_others_being_served_is_noticed(engine: Engine) -> None:
    counters = engine.counters
    calls = iter([0, 5])

    def with_others() -> object:
        found = counters()
        return type(found)(found.drafts + next(calls), found.draft_tokens, found.accepted, found.per_position)

    engine.counters = with_others  # type: ignore[method-assign]
    try:
        disturbed = measure(engine, questions(2), Sampling(max_tokens=9), 1, workload())
    finally:
        del engine.counters  # type: ignore[attr-defined]
    assert "somebody else was being served" in disturbed.eagle.notes[0]


@pytest.mark.parametrize("tokens", [38, 39, 40])
def test_limit_inside_a_draft(engine: Engine, language: Language, tokens: int) -> None:
    """vLLM counts the same whether or not the limit cuts the last step short; the correction tells."""
    agreeing = [t for t in range(24) if len(set(language.accepted([t], 41))) == 1]
    prompt = Question(0, "0", token_ids=(agreeing[0] if agreeing else 0,))
    (record,) = run(engine, [prompt], Sampling(max_tokens=tokens))
    steps = language.accepted(list(prompt.token_ids or ()), tokens)
    assert record.accepted == steps
    assert record.trimmed == 1 + sum(steps) + len(steps) - tokens


def run(engine: Engine, asked: list[Question], sampling: Sampling) -> list[Record]:
    records: list[Record] = []
    assert engine.run(asked, sampling, 4, records.append) == []
    return records


def test_turns_build_on_the_answers(engine: Engine, language: Language) -> None:
    asked = Question(0, "0", messages=({"role": "user", "content": text([3, 5])},), later=(text([7]),))
    first, second = run(engine, [asked], Sampling(max_tokens=6))
    assert (first.turn, second.turn) == (0, 1)
    assert first.text.split("w")[1:] == [str(t) for t in language.answer([5], 6)]
    assert first.prompt_tokens == 2
    assert second.token_ids == language.answer([7], 6)
    assert second.prompt_tokens > first.prompt_tokens


def test_seeds_ask_everything_again(engine: Engine) -> None:
    records = run(engine, questions(3), Sampling(temperature=0.05, max_tokens=6, seeds=(1, 2)))
    assert sorted((r.seed, r.question) for r in records) == [(s, q) for s in (1, 2) for q in range(3)]


@pytest.mark.v2
def test_steps_are_timed(engine: Engine, result: AcceptanceResult) -> None:
    """Every decode step is seen once, and its parts are within its whole."""
    times = result.eagle.step_ms
    assert times is not None
    assert times.draft > 0 < times.verify
    assert times.draft + times.verify + times.scheduling + times.other == pytest.approx(times.total)
    engine.take_steps()
    (record,) = run(engine, questions(1), Sampling(max_tokens=30))
    steps = engine.take_steps()
    assert [(s.requests, s.rows, s.drafted) for s in steps] == [(1, K + 1, True)] * len(record.accepted)


def test_refused_requests_are_kept_apart(engine: Engine) -> None:
    asked = [*questions(2), Question(2, "long", token_ids=(1,) * 300)]
    result = measure(engine, asked, Sampling(max_tokens=6), 4, workload())
    assert (result.completed, result.failed) == (2, 1)
    assert "256" in result.errors[-1]
    with pytest.raises(HeadError, match="every request was refused"):
        measure(engine, asked[2:], Sampling(max_tokens=6), 1, workload())


def test_interrupted_runs_keep_what_is_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for failure, words in ((KeyboardInterrupt(), "interrupted"), (RuntimeError("boom"), "the engine failed: boom.")):
        steps = iter(range(60))
        original = engine._clock.step

        def step(llm_engine: object, failure: BaseException = failure, steps=steps, original=original) -> list:
            if next(steps) == 40:
                raise failure
            return original(llm_engine)

        with monkeypatch.context() as patch:
            patch.setattr(engine._clock, "step", step)
            result = measure(engine, questions(), Sampling(max_tokens=TOKENS), 1, workload())
        assert result.eagle.partial == words
        assert 0 < result.completed < 12
        assert result.completed == len(result.eagle.requests)
    assert len(run(engine, questions(2), Sampling(max_tokens=5))) == 2, "what was running should have been aborted"


@pytest.mark.v2
def test_trace(engine: Engine, language: Language) -> None:
    """Every step as the languages say, with both models' probabilities; afterwards nothing is watched any more."""
    asked = questions(3)[2]
    record, steps = engine.trace(asked, Sampling(max_tokens=TOKENS))
    assert [t for step in steps for t in step.emitted] == record.token_ids == language.answer([2], TOKENS)
    first, *rest = steps
    assert (first.drafts, first.emitted) == ([], record.token_ids[:1])
    accepted = [len(step.path) for step in rest]
    assert accepted[:-1] == record.accepted[:-1]
    for step in rest:
        assert len(step.drafts) == len(step.draft_probs) == len(step.target_probs) == K
        right = len(step.path)
        assert min(step.target_probs[:right], default=1) > 0.99, "the language leaves no choice"
        if step.own_prob is not None and right < K:
            assert step.target_probs[right] < 0.01
        assert min(step.draft_probs) > 0.99, "the head is sure, rightly or not"
        assert step.own_prob is None or step.own_prob > 0.99
    last = explain(rest[-1], str)
    assert sum(d.trimmed for d in last.drafts) == record.trimmed_accepted
    kinds = {e.how for step in rest for e in explain(step, str).emitted}
    assert kinds == {"accepted", "corrected", "bonus"}
    run(engine, [asked], Sampling(max_tokens=TOKENS))
    assert len(steps) == len(rest) + 1
    worker = engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    assert "compute_logits" not in vars(worker.model_runner.model)
