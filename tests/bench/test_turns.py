"""Engines that take turns: each works while the others stand still, and its clock leaves their time out."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from vllm_eagle_plugin.benchmarks import turns
from vllm_eagle_plugin.benchmarks.answer import Answer
from vllm_eagle_plugin.benchmarks.interleave import interleaved
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.records import Record
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.turns import SECONDS, Turns

from .synthetic import record

QUESTION = Question(0, "0", token_ids=(1,))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that moves when it is told to."""
    told = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: told.seconds)
    return told


def test_others_turns_are_left_out(clock: SimpleNamespace) -> None:
    waited: list[float] = []

    def wait() -> None:
        waited.append(clock.seconds)
        clock.seconds += 1000

    own = Turns(wait)
    answer = Answer(QUESTION, None, 0, [], 1, own.now)
    for _ in range(10):
        own.between_steps()
        clock.seconds += 0.6 * SECONDS
        answer.add([7], "")
    assert len(waited) == 5, "before the first step, and then after every second"
    found = answer.record([], [], 9, 0)
    assert found.ttft == pytest.approx(0.6 * SECONDS)
    assert found.latency == pytest.approx(6 * SECONDS)
    assert found.itl == pytest.approx([0.6 * SECONDS] * 9)


def test_whoever_is_alone_never_waits(clock: SimpleNamespace) -> None:
    alone = Turns()
    clock.seconds += 10
    alone.between_steps()
    assert alone.now() == clock.seconds


class Engine:
    """Needs so many turns for a block."""

    def __init__(self, name: str, needs: int, log: list[str]):
        self.name, self.needs, self.log = name, needs, log

    def in_turns(self, questions: list[Question], *asked: object) -> Iterator[list[Record]]:
        self.log.append(f"{self.name} asked")
        for turn in range(self.needs):
            yield []
            self.log.append(f"{self.name}{turn}")
        yield [record(q.index, [1]) for q in reversed(questions)]

    def run(self, *asked: object) -> None:
        """The warm-up."""

    def forget(self) -> None:
        self.log.append("")

    def take_steps(self) -> list[object]:
        return []


def test_engines_alternate_until_the_last_is_done() -> None:
    log: list[str] = []
    workers = {"a": Engine("a", 1, log), "b": Engine("b", 3, log)}
    methods = [Method("a", None), Method("b", None)]
    questions = [Question(i, str(i), token_ids=(i,)) for i in range(4)]
    found = list(interleaved(workers, methods, questions, Sampling(), 2))  # type: ignore[arg-type]
    first = "a asked,b asked,a0,b0,b1,b2"
    second = "b asked,a asked,b0,a0,b1,b2"
    assert ",".join(log) == f",,{first},{second}", "whoever was first is the last of the next block"
    assert [[r.question for r in block.records] for block in found[-1]["b"].blocks] == [[0, 1], [2, 3]]
