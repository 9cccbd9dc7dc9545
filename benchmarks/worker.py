"""An engine in a process of its own: several can be up together, and one that dies takes nobody with it.

The parent sends what to call; the child answers with records and turns as they come, and then with `done` or `error`.
The child's own output (vLLM's log) goes to a file, whose last error is quoted when it dies.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import HeadError
from ..servers import serving_environment
from .prompts import Question
from .records import Record
from .session import Counters, Done, Sampling, Step, nothing_yet
from .step_watch import TraceStep
from .turns import Turns

MODULE = "vllm_eagle_plugin.benchmarks.worker"


class Worker:
    """A session on an engine in a child process. Use `open_workers`."""

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        """settings: environment variables beside those of `_environment`."""
        self.name = name
        number, file = tempfile.mkstemp(prefix="vllm-eagle-bench-", suffix=".log")
        self._log = Path(file)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=number,
            env=_environment() | dict(settings),
            start_new_session=True,  # ctrl-C is for the parent, which keeps what is done
        )
        os.close(number)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asked: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        self.k, self._keep_log = 0, False
        self._described: dict[str, Any] = {}

    def begin(self, *engine: Any) -> None:
        """Hand over what `engine.open_engine` takes; the child imports vLLM and then waits for `ready`."""
        self._send(*engine)

    def ready(self, tell: Callable[[str], None]) -> None:
        """Load the engine; `tell` hears of each phase.

        Raises:
            HeadError: it did not start.
        """
        while (said := self._read())[0] != "done":
            tell(said[1])
            if said[0] == "paused":
                self._send("go")
        self.k, self._described = said[1]

    def run(self, questions: Sequence[Question], sampling: Sampling, concurrency: int, done: Done) -> list[str]:
        self._send("run", False, questions, sampling, concurrency)
        while (said := self._read())[0] != "done":
            done(said[1])
        return said[1]

    def in_turns(self, questions: Sequence[Question], sampling: Sampling, concurrency: int) -> Iterator[list[Record]]:
        """`run` a turn at a time: each `next` lets the engine work for one and yields what it finished in it. The
        first only hands it the questions.

        Raises:
            HeadError: the engine failed, or refused a question.
        """
        self._send("run", True, questions, sampling, concurrency)
        finished: list[Record] = []
        while (said := self._read())[0] != "done":
            if said[0] == "record":
                finished.append(said[1])
            else:
                yield finished
                finished = []
                self._send("go")
        if said[1]:
            raise HeadError(f"vLLM refused a question: {said[1][0]}", "", "Leave it out, or raise max_model_len")
        yield finished

    def counters(self) -> Counters | None:
        return self._ask("counters")

    def take_steps(self) -> list[Step]:
        return self._ask("take_steps")

    def describe(self) -> dict[str, Any]:
        return self._described

    def forget(self) -> None:
        """Drop cached prefixes."""
        self._ask("forget")

    def logprobs(self, tokens: Sequence[int], of: Sequence[int]) -> list[float]:
        """log p [len(of)] of the tokens `of` as continuations of `tokens`."""
        return self._ask("logprobs", tokens, of)

    def encode(self, question: Question) -> list[int]:
        """Token ids of a question's prompt."""
        return self._ask("encode", question)

    def trace(self, question: Question, sampling: Sampling) -> tuple[Record, list[TraceStep]]:
        """One answer, and every step of it."""
        return self._ask("trace", question, sampling)

    def stop(self) -> None:
        """End the process and remove its log, unless an error names it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._keep_log:
            self._log.unlink(missing_ok=True)

    def _ask(self, *request: Any) -> Any:
        self._send(*request)
        return self._read()[1]

    def _send(self, *request: Any) -> None:
        try:
            pickle.dump(request, self._asked)
            self._asked.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _read(self) -> tuple[str, Any]:
        try:
            kind, value = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None
        if kind == "error":
            raise HeadError(value)
        return kind, value

    def _died(self) -> HeadError:
        code = self._process.wait()
        lines = [s for s in self._log.read_text(errors="replace").splitlines() if s.strip()]
        errors = [line.strip() for line in lines if "Error" in line] or lines or ["no output"]
        self._keep_log = True
        said = f"the engine of {self.name} stopped with exit code {code}: {errors[-1].strip()}"
        return HeadError(said, "", f"Its whole output is in {self._log}")


@contextlib.contextmanager
def open_workers(
    target: str,
    methods: dict[str, dict[str, Any] | None],
    options: dict[str, Any],
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[dict[str, Worker]]:
    """One engine per entry of `methods` (name -> speculative config, None for plain decoding), all up together.

    settings: environment variables of some of them, by name.

    Raises:
        HeadError: one of them did not start; the error names it.
    """
    workers: dict[str, Worker] = {}
    try:
        with nothing_yet("the engines were starting"):
            for name in methods:
                workers[name] = Worker(name, (settings or {}).get(name, {}))
                workers[name].begin(target, methods[name], options, len(methods))
            with starting(len(methods)) as tell:
                for name, worker in workers.items():
                    try:  # one after the other: loading is heavier than running
                        worker.ready(partial(tell, name))
                    except HeadError as error:
                        raise HeadError(f"{name}: {error}" if len(workers) > 1 else str(error)) from None
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


@contextlib.contextmanager
def starting(engines: int) -> Iterator[Callable[[str, str], None]]:
    """On a terminal: which engine is in which phase of its start, and for how long; yields who is told."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True,
    ) as shown:  # fmt: skip
        task, seen = shown.add_task("starting"), list[str]()

        def tell(name: str, phase: str) -> None:
            if name not in seen:
                seen.append(name)
            shown.update(task, description=f"engine {len(seen)} of {engines}, {name}: {phase}")

        yield tell


def main() -> None:
    """Be the child: open an engine, then do what is asked, until stdin ends."""
    answers, asked = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # whatever prints to stdout must not end up among the answers

    def say(kind: str, value: Any = None) -> None:
        pickle.dump((kind, value), answers)
        answers.flush()

    def phase(name: str, last: bool) -> None:
        if last:
            _wait(say, name)
        else:
            say("phase", name)

    from .engine import open_engine

    with contextlib.suppress(EOFError):
        target, speculative, options, share = pickle.load(asked)
        try:
            with open_engine(target, speculative, options, share, phase) as engine:
                say("done", (engine.k, engine.describe()))
                while True:
                    _serve(engine, pickle.load(asked), say)
        except HeadError as error:
            say("error", str(error))


def _serve(engine: Any, request: tuple[Any, ...], say: Any) -> None:
    what, *arguments = request
    try:
        if what == "run":
            in_turns, *questions = arguments
            engine.turns = Turns(lambda: _wait(say)) if in_turns else Turns()
            try:
                value = engine.run(*questions, lambda record: say("record", record))
            finally:
                engine.turns = Turns()
        else:
            value = getattr(engine, what)(*arguments)
        say("done", value)
    except HeadError as error:
        say("error", str(error))


def _wait(say: Any, what: str = "") -> None:
    say("paused", what)
    try:
        pickle.load(sys.stdin.buffer)
    except EOFError:
        raise HeadError("the parent is gone") from None


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


if __name__ == "__main__":
    main()
