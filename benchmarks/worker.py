"""An engine in a process of its own: several can be up together, and one that dies takes nobody with it.

The parent sends one JSON object a line and reads JSON lines until one says `done` or `error`. The child's
own output (vLLM's log) goes to a file, whose last error is quoted when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import HeadError
from ..servers import serving_environment
from .host import TraceStep
from .prompts import Question
from .records import Record
from .session import Counters, Done, Sampling, Step, nothing_yet
from .turns import Turns

MODULE = "vllm_eagle_plugin.benchmarks.worker"


class Worker:
    """A session on an engine in a child process. Use `open_workers`."""

    def __init__(
        self, name: str, target: str, speculative: dict[str, Any] | None, options: dict[str, Any], share: int = 1
    ) -> None:
        self.name = name
        number, file = tempfile.mkstemp(prefix="vllm-eagle-bench-", suffix=".log")
        self._log = Path(file)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=number,
            text=True,
            env=_environment(),
            start_new_session=True,  # ctrl-C is for the parent, which keeps what is done
        )
        os.close(number)
        self._open = {"target": target, "speculative": speculative, "options": options, "share": share}
        self.k = 0
        self._described: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to load; `ready` waits for it."""
        self._send({"do": "open", **self._open})

    def ready(self) -> None:
        """Wait until the engine is up.

        Raises:
            HeadError: it did not start.
        """
        for line in self._answers():
            self.k, self._described = line["k"], line["describe"]

    def run(self, questions: Sequence[Question], sampling: Sampling, concurrency: int, done: Done) -> list[str]:
        self._send({"do": "run", **_asked(questions, sampling, concurrency)})
        refused: list[str] = []
        for line in self._answers():
            if "record" in line:
                done(Record.model_validate(line["record"]))
            else:
                refused = line["refused"]
        return refused

    def in_turns(self, questions: Sequence[Question], sampling: Sampling, concurrency: int) -> Iterator[list[Record]]:
        """`run` a turn at a time: each `next` lets the engine work for one and yields what it finished in it. The
        first only hands it the questions.

        Raises:
            HeadError: the engine failed, or refused a question.
        """
        self._send({"do": "run", "turns": True, **_asked(questions, sampling, concurrency)})
        finished: list[Record] = []
        for line in self._answers():
            if "paused" in line:
                yield finished
                finished = []
                self._send({"do": "go"})
            elif "record" in line:
                finished.append(Record.model_validate(line["record"]))
            elif line["refused"]:
                raise HeadError(
                    f"vLLM refused a question: {line['refused'][0]}", "", "Leave it out, or raise max_model_len"
                )
        yield finished

    def counters(self) -> Counters | None:
        found = self._ask({"do": "counters"})["counters"]
        return None if found is None else Counters(**{**found, "per_position": tuple(found["per_position"])})

    def take_steps(self) -> list[Step]:
        return [Step(**step) for step in self._ask({"do": "steps"})["steps"]]

    def describe(self) -> dict[str, Any]:
        return self._described

    def forget(self) -> None:
        """Drop cached prefixes."""
        self._ask({"do": "forget"})

    def logprobs(self, tokens: Sequence[int], of: Sequence[int]) -> list[float]:
        """log p [len(of)] of the tokens `of` as continuations of `tokens`."""
        return self._ask({"do": "logprobs", "tokens": list(tokens), "of": list(of)})["logprobs"]

    def encode(self, question: Question) -> list[int]:
        """Token ids of a question's prompt."""
        return self._ask({"do": "encode", "question": asdict(question)})["tokens"]

    def trace(self, question: Question, sampling: Sampling) -> tuple[Record, list[TraceStep]]:
        """One answer, and every step of it."""
        found = self._ask({"do": "trace", "question": asdict(question), "sampling": asdict(sampling)})
        return Record.model_validate(found["record"]), [TraceStep(**step) for step in found["steps"]]

    def stop(self) -> None:
        """End the process and remove its log."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.unlink(missing_ok=True)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(request)
        answers = list(self._answers())
        return answers[-1] if answers else {}

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _answers(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = json.loads(raw)
            if "error" in line:
                raise HeadError(line["error"])
            if "done" in line:
                return
            yield line
        raise self._died()

    def _died(self) -> HeadError:
        code = self._process.wait()
        lines = [s for s in self._log.read_text(errors="replace").splitlines() if s.strip()]
        errors = [line.strip() for line in lines if "Error" in line] or lines or ["no output"]
        return HeadError(f"the engine of {self.name} stopped with exit code {code}: {errors[-1].strip()}")


@contextlib.contextmanager
def open_workers(
    target: str, methods: dict[str, dict[str, Any] | None], options: dict[str, Any]
) -> Iterator[dict[str, Worker]]:
    """One engine per entry of `methods` (name -> speculative config, None for plain decoding), all up together.

    Raises:
        HeadError: one of them did not start; the error names it.
    """
    workers: dict[str, Worker] = {}
    try:
        with nothing_yet("the engines were starting"):
            for name, speculative in methods.items():
                workers[name] = Worker(name, target, speculative, options, len(methods))
            for worker in workers.values():
                worker.start()
                try:
                    worker.ready()  # one after the other: loading is heavier than running
                except HeadError as error:
                    raise HeadError(f"{worker.name}: {error}" if len(workers) > 1 else str(error)) from None
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


def main() -> None:
    """Be the child: open an engine, then do what each line says, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints to stdout must not end up among the answers

    def say(**line: Any) -> None:
        print(json.dumps(line), file=answers, flush=True)

    from .engine import open_engine

    request = json.loads(sys.stdin.readline() or "null")
    if request is None:
        return
    try:
        with open_engine(request["target"], request["speculative"], request["options"], request["share"]) as engine:
            say(k=engine.k, describe=engine.describe())
            say(done=True)
            for line in sys.stdin:
                _serve(engine, json.loads(line), say)
    except HeadError as error:
        say(error=str(error))


def _serve(engine: Any, request: dict[str, Any], say: Any) -> None:
    try:
        if request["do"] == "run":
            questions = [_question(q) for q in request["questions"]]
            sampling = _sampling(request["sampling"])
            engine.turns = Turns(lambda: _wait(say)) if request.get("turns") else Turns()
            try:
                refused = engine.run(
                    questions, sampling, request["concurrency"], lambda r: say(record=r.model_dump(mode="json"))
                )
            finally:
                engine.turns = Turns()
            say(refused=refused)
        elif request["do"] == "counters":
            found = engine.counters()
            say(counters=None if found is None else asdict(found))
        elif request["do"] == "steps":
            say(steps=[asdict(step) for step in engine.take_steps()])
        elif request["do"] == "forget":
            engine.forget()
        elif request["do"] == "logprobs":
            say(logprobs=engine.logprobs(request["tokens"], request["of"]))
        elif request["do"] == "trace":
            record, steps = engine.trace(_question(request["question"]), _sampling(request["sampling"]))
            say(record=record.model_dump(mode="json"), steps=[asdict(step) for step in steps])
        elif request["do"] == "encode":
            say(tokens=engine.encode(_question(request["question"])))
        say(done=True)
    except HeadError as error:
        say(error=str(error))


def _wait(say: Any) -> None:
    say(paused=True)
    if not sys.stdin.readline():
        raise HeadError("the parent is gone")


def _asked(questions: Sequence[Question], sampling: Sampling, concurrency: int) -> dict[str, Any]:
    return {"questions": [asdict(q) for q in questions], "sampling": asdict(sampling), "concurrency": concurrency}


def _environment() -> dict[str, str]:
    """As a server's, but with a KV cache that leaves room for other engines unless the user says otherwise."""
    environment = serving_environment()
    # What vLLM sets where it has a process for the engine: threads that go on spinning would take a core from
    # whose turn is next.
    environment.setdefault("KMP_BLOCKTIME", "5")
    environment.setdefault("KMP_TPAUSE", "0")
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return environment


def _sampling(fields: dict[str, Any]) -> Sampling:
    return Sampling(**{**fields, "seeds": tuple(fields["seeds"])})


def _question(fields: dict[str, Any]) -> Question:
    ids = fields["token_ids"]
    lists = {"messages": tuple(fields["messages"]), "later": tuple(fields["later"])}
    return Question(**{**fields, **lists, "token_ids": None if ids is None else tuple(ids)})


if __name__ == "__main__":
    main()
