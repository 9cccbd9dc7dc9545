"""Comparing real engines side by side, on answers that are known; and what a row may and may not say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_eagle_plugin.benchmarks import compare
from vllm_eagle_plugin.benchmarks.acceptance import measure
from vllm_eagle_plugin.benchmarks.compare import find_differences, first_difference
from vllm_eagle_plugin.benchmarks.interleave import Block, Trial, row
from vllm_eagle_plugin.benchmarks.methods import Method, make_method, make_methods
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.records import Record
from vllm_eagle_plugin.benchmarks.session import Done, Sampling
from vllm_eagle_plugin.benchmarks.speed_schema import Row
from vllm_eagle_plugin.benchmarks.worker import Worker, open_workers

from vllm_eagle_plugin.errors import HeadError, UsageError

from .command import run_cli
from .conftest import OPTIONS
from .language import K, Language
from .synthetic import record
from .test_acceptance import questions, workload

TOKENS = 24
PLAIN, HEAD = Method("plain", None), Method("head, k=3", {"model": "head", "num_speculative_tokens": 3})


@pytest.mark.engine
def test_plain_head_ngram_and_tree(language: Language, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_token_ids": [i] * 3}) + "\n" for i in range(7)))
    page, picture = tmp_path / "c.html", tmp_path / "c.png"
    arguments = ["--target", language.target, "--head", language.head, "--method", "ngram", "-k", K, "--json"]
    tree = {"eagle": {"tree": {"kind": "static", "branches": [2, 1, 1]}}, "num_speculative_tokens": 6}
    arguments += ["--spec-config", json.dumps({"model": str(language.head), **tree})]
    files = ["--prompts", prompts, "--html", page, "--plot", picture]
    limits = ["--max-tokens", TOKENS, "--concurrency", 2, "--engine-args", json.dumps(OPTIONS)]
    done = run_cli("bench", "compare", *arguments, *files, *limits)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    plain, head, ngram, tree = result["rows"]
    assert result["questions"] == 6, "blocks of two: the seventh question is left out"
    assert [row["identical"] for row in result["rows"]] == [6, 6, 6, 6]
    assert tree["name"] == "head static tree of depth 3, k=6"
    lengths = [row["acceptance"]["acceptance_length"]["value"] for row in (head, tree)]
    assert lengths[0] <= lengths[1] <= 4
    assert result["differences"] == []
    steps = [a for i in range(6) for a in language.accepted([i] * 3, TOKENS)]
    assert head["acceptance"]["acceptance_length"]["value"] == 1 + sum(steps) / len(steps)
    assert ngram["acceptance"]["accepted_tokens"] > 0, "a cycle repeats itself"
    for made in (head, ngram, tree):
        per_step = made["acceptance"]["tokens_per_step"]["value"]
        assert made["implied_overhead"] == pytest.approx(per_step / made["speedup"]["value"] - 1)
    assert plain["speedup"] == {"value": 1.0, "low": None, "high": None}
    assert all(r["step_ms"]["steps"] > 0 for r in result["rows"])
    assert "Speedup" in page.read_text()
    assert picture.stat().st_size > 10_000


def killed_after(worker: Worker, answers: int) -> Callable[..., list[str]]:
    """`worker.run`, with the engine killed once it has given this many answers."""
    run, given = worker.run, list[Record]()

    def dying(asked: Sequence[Question], sampling: Sampling, concurrency: int, done: Done) -> list[str]:
        def counted(answer: Record) -> None:
            given.append(answer)
            done(answer)
            if len(given) == answers:
                os.kill(worker._process.pid, signal.SIGKILL)

        return run(asked, sampling, concurrency, counted)

    return dying


@pytest.mark.engine
def test_engine_that_dies(language: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error, what was done is kept, and no process is left behind."""
    speculative = {"model": str(language.head), "num_speculative_tokens": K}
    with open_workers(str(language.target), {"head": speculative}, OPTIONS) as workers:
        worker = workers["head"]
        records: list[Record] = []
        assert worker.run(questions(4), Sampling(max_tokens=TOKENS), 2, records.append) == []
        assert [r.accepted for r in records if r.question == 2] == [language.accepted([2], TOKENS)]
        monkeypatch.setattr(worker, "run", killed_after(worker, 4))
        long = [Question(i, str(i), token_ids=(i % 24,)) for i in range(400)]
        result = measure(worker, long, Sampling(max_tokens=200), 1, workload())
        assert result.eagle.partial is not None
        assert "stopped with exit code -9" in result.eagle.partial
        assert 3 <= result.completed < 400, "the first of the four answers was the warm-up's"
    assert worker._process.poll() is not None
    assert str(worker._log) in result.eagle.partial
    assert worker._log.read_text()
    worker._log.unlink()


@pytest.mark.engine
def test_head_that_does_not_load(language: Language, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((language.head / "config.json").read_text())
    limits = ["--engine-args", json.dumps(OPTIONS), "--limit", 2]
    done = run_cli("bench", "acceptance", "--target", language.target, "--head", broken, *limits)
    assert done.returncode == 1
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "weights" in errors[0]


@pytest.mark.parametrize("fails", [None, HeadError("gone"), KeyboardInterrupt()])
def test_engines_started_anew(fails: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs from process to process counts as often as there were processes, and a start that fails costs
    nothing of the others."""
    luck, started = [1.0, 1.25, 1.1, 1.0], list[Any]()

    @contextlib.contextmanager
    def opened(*asked: Any) -> Iterator[dict[str, SimpleNamespace]]:
        started.append(asked)
        if fails is not None and len(started) == 4:
            raise fails
        yield {"plain": SimpleNamespace(describe=lambda: {"dtype": "float32"})}

    def ran(*asked: object) -> tuple[dict[str, Trial], None]:
        return {"plain": trial(PLAIN, 1.0), HEAD.name: trial(HEAD, luck[len(started) - 1])}, None

    monkeypatch.setattr(compare, "open_workers", opened)
    monkeypatch.setattr(compare, "run_all", ran)
    asked = [Question(i, str(i), token_ids=(i,)) for i in range(8)]
    result = compare.compare("target", [HEAD], asked, "some", Sampling(), 1, 4, {}, fresh=True)
    done = 4 if fails is None else 3
    orders = [next(iter(ways)) for _, ways, _ in started]
    assert orders == ["plain", HEAD.name, "plain", HEAD.name], "who is started first is faster"
    assert (result.rounds, result.fresh, result.rows[1].answers) == (4, True, 8 * done)
    assert (result.partial is None) == (fails is None)
    speed = result.rows[1].speedup
    assert speed.value == pytest.approx(done / sum(luck[:done]))
    assert speed.low == pytest.approx(1 / 1.25), "so few starts say no more than that"
    assert speed.high == pytest.approx(1.0)
    once = row(trial(HEAD, 1.25), trial(PLAIN, 1.0)).speedup
    assert (once.low, once.high) == (pytest.approx(0.8), pytest.approx(0.8)), "within a start all blocks are alike"


def trial(method: Method, seconds: float, accepted: int = 2, questions: int = 8) -> Trial:
    """Answers of 10 steps that took `seconds`."""
    made = []
    for q in range(questions):
        steps = [accepted] * 10 if method.k else []
        fields = {} if method.k else {"plain_steps": 10 * (accepted + 1)}
        made.append(Block([record(q, steps, **fields).model_copy(update={"latency": seconds, "ttft": 0.01})]))
    return Trial(method, 1, made)


def test_overhead_and_speedup() -> None:
    plain, head = trial(PLAIN, 3.0), trial(HEAD, 1.5)
    made = row(head, plain)
    assert made.speedup.value == pytest.approx(2.0)
    assert made.speedup.low == pytest.approx(2.0)
    assert made.implied_overhead == pytest.approx(3 / 2 - 1)
    assert made.impossible is None
    assert made.tokens_per_second.value == pytest.approx(31 / 1.5)


def test_impossible_speedups_are_flagged() -> None:
    flagged = row(trial(HEAD, 0.5), trial(PLAIN, 3.0))
    assert flagged.speedup.value == pytest.approx(6.0)
    assert flagged.impossible is not None
    assert "above the acceptance length 3.00: beyond noise" in flagged.impossible
    fields = {**flagged.model_dump(), "impossible": None}
    with pytest.raises(ValueError, match="must be flagged"):
        Row.model_validate(fields)
    with pytest.raises(ValueError, match="must be flagged"):
        Row.model_validate({**row(trial(HEAD, 2.0), trial(PLAIN, 3.0)).model_dump(), "impossible": "because"})


def test_nothing_drafted_cannot_speed_up() -> None:
    idle = trial(HEAD, 1.0)
    for block in idle.blocks:
        block.records = [r.model_copy(update={"accepted": [], "drafted": [], "plain_steps": 30}) for r in block.records]
    assert "above the acceptance length 1.00" in (row(idle, trial(PLAIN, 3.0)).impossible or "")


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], None)],
)
def test_first_difference(one: list[int], other: list[int], where: int | None) -> None:
    assert first_difference(one, other) == where


class Judge:
    """A plain engine that finds 7 likelier than 8 by a little and than 9 by much."""

    def encode(self, question: Question) -> list[int]:
        return [0, question.index]

    def logprobs(self, tokens: list[int], of: tuple[int, int]) -> list[float]:
        assert tokens == [0, 0, 5]
        return [{7: -0.5, 8: -0.5004, 9: -3.0}[token] for token in of]


@pytest.mark.parametrize(("token", "tie", "gap"), [(8, True, 0.0004), (9, False, 2.5)])
def test_ties_are_told_from_bugs(token: int, tie: bool, gap: float) -> None:
    plain = Trial(PLAIN, 1, [Block([record(0, []).model_copy(update={"token_ids": [5, 7, 1]})])])
    ours = Trial(HEAD, 1, [Block([record(0, [1]).model_copy(update={"token_ids": [5, token, 2]})])])
    (found,) = find_differences(ours, plain, Judge(), {0: Question(0, "0")}, 1e-3)  # type: ignore[arg-type]
    assert (found.position, found.plain_token, found.token, found.tie) == (1, 7, token, tie)
    assert found.logit_gap == pytest.approx(gap)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], [], []), "nothing to compare"),
        (([], ["draft_model"], []), "draft_model without a model"),
        (([], [], ["{"]), "is not JSON"),
        (([], [], ["[]"]), "is a list"),
        ((["./nowhere"], [], []), "./nowhere is not a folder"),
    ],
)
def test_bad_methods(arguments: tuple, words: str) -> None:
    with pytest.raises(HeadError, match=words):
        make_methods(*arguments, 3)


def test_methods(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    head = make_method(str(tmp_path), None, 4)
    assert head.speculative == {"num_speculative_tokens": 4, "model": str(tmp_path)}
    assert make_method(None, "ngram", 2, '{"prompt_lookup_max": 4}').speculative == {
        "num_speculative_tokens": 2, "prompt_lookup_max": 4, "method": "ngram",
    }  # fmt: skip
    assert make_method(None, "none", 3).speculative is None
    for eagle, words in ({"tree": "auto"}, "auto tree of depth 5"), ({"adaptive": True}, "chain, adaptive"):
        tree = make_method(str(tmp_path), None, 16, json.dumps({"eagle": eagle}))
        assert tree.name == f"{tmp_path.name} {words}, k=16"
    with pytest.raises(UsageError, match="has none"):
        make_method(str(tmp_path), "none", 3)
    twice = make_methods([str(tmp_path), str(tmp_path)], [], [], 3)
    assert len({m.name for m in twice}) == 2
    (tmp_path / "config.json").unlink()
    with pytest.raises(HeadError, match="Run vllm-eagle convert"):
        make_method(str(tmp_path), None, 3)
