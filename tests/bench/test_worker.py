"""The conversation with a worker: answers, turns, phases of its start, failures, death. Its engine is invented."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_eagle_plugin.benchmarks import turns, worker
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.records import Record
from vllm_eagle_plugin.benchmarks.session import Counters, Sampling
from vllm_eagle_plugin.benchmarks.worker import Worker, open_workers

from vllm_eagle_plugin.errors import HeadError


@pytest.fixture(autouse=True)
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MODULE", "tests.bench.fake_worker")
    monkeypatch.chdir(Path(__file__).parents[2])


def asked(*ids: str) -> list[Question]:
    return [Question(i, name, token_ids=(i,)) for i, name in enumerate(ids)]


def test_answers() -> None:
    with open_workers("t", {"plain": None, "head": {"num_speculative_tokens": 3}}, {}) as workers:
        assert [w.k for w in workers.values()] == [3, 3]
        one, other = workers.values()
        assert one.describe() == {"dtype": "float32"}
        records: list[Record] = []
        assert one.run(asked("a", "refused"), Sampling(max_tokens=5), 2, records.append) == ["refused"]
        assert [(r.question, len(r.accepted)) for r in records] == [(0, 5), (1, 5)]
        assert other.counters() == Counters(4, 12, 5, (3, 2, 0))
        assert other.take_steps() == []
        with pytest.raises(HeadError, match="the engine failed"):
            one.run(asked("fails"), Sampling(), 1, records.append)
        assert one.run(asked("a"), Sampling(), 1, records.append) == [], "it goes on"
        processes = [w._process for w in workers.values()]
    assert all(process.poll() is not None for process in processes)


def test_turns() -> None:
    """The first only hands over the questions; then each lasts for a while."""
    with open_workers("t", {"head": {"num_speculative_tokens": 3}}, {}) as workers:
        taken = list(workers["head"].in_turns(asked("a", "b", "c"), Sampling(max_tokens=2), 1))
        assert taken[0] == []
        assert [r.question for turn in taken for r in turn] == [0, 1, 2]
        assert len(taken) == 2, f"three steps that take no time are one turn of {turns.SECONDS} s"
        with pytest.raises(HeadError, match="vLLM refused a question: refused"):
            list(workers["head"].in_turns(asked("refused"), Sampling(), 1))


def test_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Worker("head", {})
    heard: list[str] = []
    try:
        made.begin("t", None, {}, 1)
        made.ready(heard.append)
    finally:
        made.stop()
    assert heard == ["importing", "loading"]
    assert not made._log.exists()


def test_one_that_does_not_start() -> None:
    with (
        pytest.raises(HeadError, match=r"^plain: it does not load"),
        open_workers("broken", {"plain": None, "h": {}}, {}),
    ):
        pytest.fail("it started")


def test_one_that_dies() -> None:
    with open_workers("t", {"head": None}, {}) as workers:
        made = workers["head"]
        with pytest.raises(
            HeadError, match=r"stopped with exit code 3: SomeError: out of luck\. Its whole output is in"
        ):
            made.run(asked("dies"), Sampling(), 1, lambda record: None)
    assert "out of luck" in made._log.read_text()
    made._log.unlink()


def test_settings_of_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    popen = worker.subprocess.Popen
    monkeypatch.setattr(
        worker.subprocess, "Popen", lambda *a, **k: seen.append(k["env"].get("VLLM_PLUGINS")) or popen(*a, **k)
    )
    with open_workers("t", {"with": None, "without": None}, {}, {"without": {"VLLM_PLUGINS": ""}}):
        assert seen[1] == ""
