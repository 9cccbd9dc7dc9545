"""A worker whose engine is invented: `python -m tests.bench.fake_worker`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vllm_eagle_plugin.benchmarks import engine, worker
from vllm_eagle_plugin.benchmarks.session import Counters
from vllm_eagle_plugin.benchmarks.turns import Turns

from vllm_eagle_plugin.errors import HeadError

from .synthetic import record


class Engine:
    """Accepts one draft of each question; stops where it is asked to."""

    k = 3
    turns = Turns()

    def describe(self) -> dict[str, Any]:
        return {"dtype": "float32"}

    def run(self, questions: Sequence[Any], sampling: Any, concurrency: int, done: Callable[[Any], None]) -> list[str]:
        for question in questions:
            self.turns.between_steps()
            if question.id == "dies":
                print("SomeError: out of luck", flush=True)
                os._exit(3)
            if question.id == "fails":
                raise HeadError("the engine failed")
            done(record(question.index, [1] * sampling.max_tokens))
        return [q.id for q in questions if q.id == "refused"]

    def counters(self) -> Counters:
        return Counters(4, 12, 5, (3, 2, 0))

    def take_steps(self) -> list[Any]:
        return []


@contextlib.contextmanager
def open_engine(target: str, speculative: Any, options: Any, share: int, tell: Any) -> Iterator[Engine]:
    tell("importing", False)
    tell("loading", True)
    if target == "broken":
        raise HeadError("it does not load")
    yield Engine()


if __name__ == "__main__":
    engine.open_engine = open_engine
    worker.main()
