"""The gate fails on a real fall, passes on noise, and refuses what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from vllm_eagle_plugin.benchmarks.acceptance import Run, summarise
from vllm_eagle_plugin.benchmarks.cli import app
from vllm_eagle_plugin.benchmarks.gate import Counted, baseline_of, judge, upper_bound
from vllm_eagle_plugin.benchmarks.records import Record
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult

from vllm_eagle_plugin.errors import HeadError, UsageError

from .pages import acceptance_result
from .synthetic import geometric


def result_of(records: list[Record]) -> AcceptanceResult:
    return summarise(Run(records=records, seconds=1.0), 3, acceptance_result().eagle.workload, len(records))


def worse(records: list[Record], share: float, seed: int = 0) -> list[Record]:
    """A share of the steps accepts nothing any more."""
    rng = np.random.default_rng(seed)
    return [r.model_copy(update={"accepted": [0 if rng.random() < share else a for a in r.accepted]}) for r in records]


def test_same_passes_and_a_fall_fails() -> None:
    records = geometric(np.random.default_rng(0), 80)
    baseline = baseline_of(result_of(records))
    same = judge(result_of(records), baseline, 0.0)
    assert same.passed
    assert same.change == same.at_most == 0
    fallen = judge(result_of(worse(records, 0.1)), baseline, 0.02)
    assert not fallen.passed
    assert fallen.at_most < -0.02
    assert "at least" in fallen.reason
    assert judge(result_of(worse(records, 0.1)), baseline, 0.2).passed


def test_false_alarms_and_misses() -> None:
    """Two measurements of the same head seldom fail; a fall well beyond noise is seldom missed."""
    rng, alarms, misses = np.random.default_rng(1), 0, 0
    for _ in range(400):
        difficulty = rng.beta(4, 2, 60)
        before, now, lower = measured(rng, difficulty), measured(rng, difficulty), measured(rng, 0.9 * difficulty)
        alarms += upper_bound(now, before) < 0
        misses += upper_bound(lower, before) >= 0
    assert 5 <= alarms <= 35, "at 95% confidence one in twenty is expected"
    assert misses <= 8


def measured(rng: np.random.Generator, difficulty: np.ndarray) -> list[Counted]:
    """Sampled answers differ from run to run; the questions stay as hard as they are."""
    right = rng.random((len(difficulty), 30, 3)) < difficulty[:, None, None]
    accepted = right.cumprod(-1).sum((1, 2))
    return [Counted(question_id=str(i), drafts=30, accepted=int(a)) for i, a in enumerate(accepted)]


def test_small_falls_in_few_questions_are_not_decided() -> None:
    records = geometric(np.random.default_rng(2), 4, steps=5)
    lower = result_of([records[0].model_copy(update={"accepted": [0] * 5}), *records[1:]])
    verdict = judge(lower, baseline_of(result_of(records)), 0.02)
    assert verdict.passed
    assert "not beyond noise" in verdict.reason
    assert verdict.detectable > 0.1


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    result = acceptance_result()
    baseline = baseline_of(result)
    other = result.model_copy(deep=True)
    other.eagle.workload.max_tokens = 64
    with pytest.raises(UsageError, match="max_tokens was 128 and is 64"):
        judge(other, baseline, 0.02)
    partial = result.model_copy(deep=True)
    partial.eagle.partial = "interrupted"
    with pytest.raises(HeadError, match="partial: interrupted"):
        judge(partial, baseline, 0.02)
    fewer = baseline.model_copy(update={"questions": baseline.questions[1:]})
    with pytest.raises(HeadError, match="other questions"):
        judge(result, fewer, 0.02)
    totals = result.model_copy(deep=True)
    totals.eagle.source = "counters"
    with pytest.raises(HeadError, match="totals only"):
        judge(totals, baseline, 0.02)


def test_command(tmp_path: Path) -> None:
    good, bad, baseline = (tmp_path / name for name in ("good.json", "bad.json", "baseline.json"))
    result = acceptance_result()
    good.write_text(result.model_dump_json())
    bad.write_text(result_of(worse(result.eagle.requests, 0.5)).model_dump_json())
    run = CliRunner().invoke
    missing = run(app, ["gate", str(good), "--baseline", str(baseline)])
    assert isinstance(missing.exception, UsageError)
    assert run(app, ["gate", str(good), "--baseline", str(baseline), "--update"]).exit_code == 0
    stored = json.loads(baseline.read_text())
    assert {"environment", "workload", "questions", "acceptance_length"} <= set(stored)
    assert run(app, ["gate", str(good), "--baseline", str(baseline)]).stdout.startswith("passed: ")
    failed = run(app, ["gate", str(bad), "--baseline", str(baseline), "--json"])
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[1]", "schema version None"),
        ('{"eagle": {"schema_version": 99}}', "schema version 99"),
        ('{"eagle": {"schema_version": 1}}', "not a result"),
    ],
)
def test_bad_results(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    done = CliRunner().invoke(app, ["gate", str(file), "--baseline", str(file)])
    assert isinstance(done.exception, HeadError)
    assert words in str(done.exception)


def test_impossible_results_are_refused(tmp_path: Path) -> None:
    result = json.loads(acceptance_result().model_dump_json())
    result["eagle"]["acceptance"]["acceptance_length"]["value"] = 5.0
    file = tmp_path / "r.json"
    file.write_text(json.dumps(result))
    done = CliRunner().invoke(app, ["gate", str(file), "--baseline", str(file)])
    assert "impossible acceptance figures: length 5.0 is not within 1 and k + 1 = 4" in str(done.exception)
