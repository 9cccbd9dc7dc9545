"""Figures against hand counts and scipy; intervals against the truth; what is impossible is refused."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError
from vllm_eagle_plugin.benchmarks import statistics
from vllm_eagle_plugin.benchmarks.interleave import Block, Trial, speedup
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.records import with_steps
from vllm_eagle_plugin.benchmarks.schema import Acceptance, Figure
from vllm_eagle_plugin.benchmarks.summary import (
    acceptance,
    by_category,
    by_output_position,
    by_prompt_length,
    histograms,
)

from .synthetic import geometric, record, true_figures, true_length

HAND = [
    record(0, [3, 0, 1], category="a", prompt_tokens=31),
    record(1, [2, 2], [3, 2], category="b", trimmed=2, prompt_tokens=32),  # emitted 4 of 6; one accepted draft lost
    record(1, [0], [1], category="b", turn=1, plain_steps=2, prompt_tokens=70),
]


def test_hand_made_counters() -> None:
    found = acceptance(HAND, 3)
    assert (found.questions, found.requests) == (2, 3)
    assert (found.num_drafts, found.draft_tokens, found.accepted_tokens) == (6, 15, 8)
    assert found.acceptance_length.value == pytest.approx(1 + 8 / 6)
    assert found.acceptance_rate.value == pytest.approx(8 / 15)
    assert [f.value for f in found.per_position] == pytest.approx([4 / 6, 3 / 6, 1 / 6])
    # Drafted and everything before accepted: 6 steps at position 1; 4 at 2; 3, 0, 1, 2, 2, 0 leaves 2 of 3 at 3,
    # since one of the steps with two accepted had drafted no third.
    assert [f.value for f in found.conditional] == pytest.approx([4 / 6, 3 / 4, 1 / 2])
    assert found.expected_length.value == pytest.approx(1 + 4 / 6 + 4 / 6 * 3 / 4 + 4 / 6 * 3 / 4 / 2)
    assert found.emitted_length.value == pytest.approx((8 + 6 - 2) / 6)
    assert found.tokens_per_step.value == pytest.approx((8 + 6 - 2 + 2) / 8)
    assert (found.trimmed_tokens, found.trimmed_accepted_tokens) == (2, 1)


def test_groups_and_histograms() -> None:
    assert [(g.name, g.acceptance.num_drafts) for g in by_category(HAND, 3)] == [("a", 3), ("b", 3)]
    lengths = {g.name: g.acceptance.accepted_tokens for g in by_prompt_length(HAND, 3)}
    assert lengths == {"0 to 31": 4, "32 to 63": 4, "64 to 127": 0}
    assert histograms(HAND, 3)[0].counts == [2, 1, 2, 1]
    assert histograms(HAND, 3)[1].counts == [0, 1, 1, 4]
    assert by_category([record(0, [1])], 3) == []


def test_output_positions() -> None:
    """Steps begin at 1 + all that came before; the trim belongs to the last one."""
    long = record(0, [3] * 5, trimmed=1)
    assert long.step_starts() == [1, 5, 9, 13, 17]
    first, second = by_output_position([long], 3)
    assert (first.name, first.acceptance.num_drafts, first.acceptance.trimmed_tokens) == ("0 to 15", 4, 0)
    assert (second.name, second.acceptance.num_drafts, second.acceptance.trimmed_tokens) == ("16 to 31", 1, 1)
    assert with_steps(long, [4]).trimmed == 1


@pytest.mark.parametrize("output", [38, 39, 40])
def test_trim_is_what_was_counted_and_not_emitted(output: int) -> None:
    """13 drafts, all 26 tokens accepted, whatever the limit was."""
    found = acceptance([record(0, [2] * 13, 2, trimmed=40 - output)], 2)
    assert found.acceptance_length.value == 3
    assert found.emitted_length.value == pytest.approx((output - 1) / 13)
    assert found.trimmed_accepted_tokens == {38: 1, 39: 0, 40: 0}[output]


def test_unknown_trim_is_not_guessed() -> None:
    found = acceptance([record(0, [2, 2], trimmed=None), record(1, [1])], 3)
    assert found.trimmed_tokens is found.emitted_length.value is found.tokens_per_step.value is None
    assert found.acceptance_length.value == pytest.approx(1 + 5 / 3)


def test_nothing_drafted() -> None:
    found = acceptance([record(0, []), record(1, [])], 3)
    assert found.acceptance_length.value is None
    assert found.num_drafts == 0


def test_intervals_equal_scipy() -> None:
    """The same interval from scipy's bootstrap of the same ratio, questions being what is resampled."""
    records = geometric(np.random.default_rng(5), 120)
    tallied = statistics.tally(records, 3)
    accepted, drafts = tallied.sums[:, statistics.ACCEPTED], tallied.sums[:, statistics.DRAFTS]
    expected = scipy.stats.bootstrap(
        (accepted, drafts),
        lambda a, d, axis: 1 + a.sum(axis) / d.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        confidence_level=1 - 2 * statistics.percentiles(120)[0],
        rng=np.random.default_rng(6),
    ).confidence_interval
    ours = statistics.intervals(tallied, resamples=20_000)["acceptance_length"]
    width = expected.high - expected.low
    assert ours == pytest.approx([expected.low, expected.high], abs=0.03 * width)


@pytest.mark.parametrize(("questions", "figures"), [(10, ["acceptance_length"]), (80, list(true_figures()))])
def test_intervals_cover_the_truth(questions: int, figures: list[str]) -> None:
    """Of 1,000 simulated runs, for every figure and every position."""
    rng, truth = np.random.default_rng(questions), true_figures()
    hits = {name: np.zeros_like(truth[name]) for name in figures}
    for _ in range(1000):
        tallied = statistics.tally(geometric(rng, questions, steps=10), 3)
        found = statistics.intervals(tallied, resamples=600)
        for name in figures:
            low, high = found[name]
            hits[name] += (low <= truth[name]) & (truth[name] <= high)
    assert all(((of >= 930) & (of <= 970)).all() for of in hits.values()), hits


@pytest.mark.parametrize("blocks", [12, 40])
def test_intervals_of_speedups_cover_the_truth(blocks: int) -> None:
    """On a machine whose moods last a block, and fall on both ways alike."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(1000):
        mood, tokens = rng.lognormal(0, 0.4, blocks), rng.integers(40, 64, blocks)
        runs = []
        for seconds in (0.02, 0.03):
            spent = mood * tokens * seconds * rng.lognormal(0, 0.1, blocks)
            runs.append(answered(zip(tokens, spent, strict=True)))
        found = speedup(*runs)
        hits += found.low <= 1.5 <= found.high
    assert 930 <= hits <= 970


def test_intervals_over_starts_cover_the_truth() -> None:
    """Where each process is as fast as it happens to be: over blocks, intervals would be far too narrow."""
    rng, hits, over_blocks = np.random.default_rng(1), 0, 0
    for _ in range(500):
        pooled, runs = [], []
        for seconds in (0.02, 0.03):
            spent = 50 * seconds * np.repeat(rng.lognormal(0, 0.05, 6), 8) * rng.lognormal(0, 0.02, 48)
            runs.append(answered([(50, s) for s in spent], 8))
            pooled.append(answered([(50, s) for s in spent]))
        found, narrow = speedup(*runs), speedup(*pooled)
        hits += found.low <= 1.5 <= found.high
        over_blocks += narrow.low <= 1.5 <= narrow.high
    assert 460 <= hits <= 490
    assert over_blocks < 350


def answered(blocks: Iterable[tuple[int, float]], blocks_a_start: int = 1_000) -> Trial:
    """Blocks of so many tokens and seconds, all of one start or so many of each."""
    made = []
    for i, (tokens, seconds) in enumerate(blocks):
        one = record(0, []).model_copy(update={"output_tokens": int(tokens), "latency": float(seconds)})
        made.append(Block([one], i // blocks_a_start))
    return Trial(Method("way", None), 1, made)


def test_intervals_over_steps_would_not_cover() -> None:
    """What the resampling of questions is for: steps of one question resemble each other."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        accepted = np.concatenate([r.accepted for r in geometric(rng, 40)])
        error = accepted.std(ddof=1) / len(accepted) ** 0.5
        hits += abs(1 + accepted.mean() - true_length()) <= 1.96 * error
    assert hits < 180


def test_one_question_has_no_interval() -> None:
    assert acceptance([record(0, [1, 2])], 3).acceptance_length.low is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_position": [Figure(value=0.2), Figure(value=0.3), Figure(value=0.0)]}, "rise"),
        ({"per_position": [Figure(value=0.9), Figure(value=0.8), Figure(value=0.7)]}, "add up"),
        ({"acceptance_length": Figure(value=4.5)}, "k \\+ 1"),
        ({"acceptance_length": Figure(value=0.9)}, "within 1"),
        ({"accepted_tokens": 7}, "is not 1 \\+ 7 / 6"),
        ({"draft_tokens": 5}, "8 accepted of 5"),
        ({"acceptance_length": Figure(value=None)}, "no acceptance length"),
    ],
)
def test_impossible_figures_are_refused(change: dict, words: str) -> None:
    good = acceptance(HAND, 3)
    with pytest.raises(ValidationError, match=words):
        Acceptance.model_validate({**good.model_dump(), **{k: _plain(v) for k, v in change.items()}})


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.model_dump() if isinstance(value, Figure) else value


def test_rates_of_a_large_k_serve_a_smaller_one() -> None:
    rates = [f.value for f in acceptance(HAND, 3).conditional]
    assert statistics.expected_length(rates, 3) == pytest.approx(acceptance(HAND, 3).expected_length.value)
    assert statistics.expected_length(rates, 1) == pytest.approx(1 + 4 / 6)
