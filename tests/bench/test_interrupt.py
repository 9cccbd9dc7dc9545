"""Ctrl-C, or SIGTERM, in the middle: a real `vllm-eagle bench` keeps what is done and says so."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import OPTIONS
from .language import K, Language

pytestmark = pytest.mark.engine
QUESTIONS, TOKENS, PATIENCE = 200, 40, 900


@dataclass
class Running:
    """A command with a terminal for its errors, as somebody who presses ctrl-C has."""

    process: subprocess.Popen[str]
    terminal: int
    shown: str = ""

    def workers(self) -> list[int]:
        """Its engines' processes."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait(self, until: Callable[[], Any]) -> None:
        """Read the terminal until something has happened."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, self.shown[-2000:]
            assert self.process.poll() is None, self.shown[-2000:]
            self.read()

    def read(self) -> bool:
        """Take what it says next; False at its end."""
        try:
            said = os.read(self.terminal, 4096).decode(errors="replace")
        except OSError:  # a terminal that nobody holds any more
            return False
        self.shown += said
        return bool(said)

    def percent(self) -> float:
        """What its progress bar says."""
        return max(map(float, re.findall(r"(\d+)%", self.shown)), default=0.0)

    def interrupt(self, number: signal.Signals) -> tuple[int, list[str]]:
        """Press ctrl-C, or what a scheduler does instead; the exit code and what was said as errors."""
        self.process.send_signal(number)
        while self.read():
            pass
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown).replace("\r", "\n")
        return self.process.wait(PATIENCE), [line for line in plain.splitlines() if line.startswith("error")]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_token_ids": [i % 24] * 3}) + "\n" for i in range(QUESTIONS)))
    return {"prompts": prompts, "output": tmp_path / "r.json", "html": tmp_path / "r.html", "plot": tmp_path / "r.png"}


@pytest.fixture
def start(language: Language, files: dict[str, Path]) -> Iterator[Callable[..., Running]]:
    """Starts a verb with everything it needs; whatever is left of it afterwards is killed."""
    started: list[Running] = []

    def begin(verb: str, *arguments: Any) -> Running:
        models = ["--target", language.target, "--head", language.head, "-k", K, "--max-tokens", TOKENS]
        written = [f"--{name}={file}" for name, file in files.items()]
        options = [*models, *written, "--engine-args", json.dumps(OPTIONS), "--limit", QUESTIONS, *arguments]
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm_eagle_plugin.cli", "bench", verb, *map(str, options)],
            stdout=subprocess.DEVNULL, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
            # Whoever runs the tests in the background ignores SIGINT, and his children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )  # fmt: skip
        os.close(theirs)
        started.append(Running(process, ours))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()
        os.close(running.terminal)


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        pytest.param("acceptance", signal.SIGTERM, marks=pytest.mark.extended),
        pytest.param("sweep", signal.SIGINT, marks=pytest.mark.extended),
        ("compare", signal.SIGINT),
    ],
)
def test_what_is_done_is_kept(
    start: Callable[..., Running], files: dict[str, Path], verb: str, number: signal.Signals
) -> None:
    running = start(verb)
    running.wait(lambda: running.percent() >= 1)
    workers = running.workers()
    code, errors = running.interrupt(number)
    assert code == 1
    assert "Traceback" not in running.shown
    assert len(errors) == 1, running.shown[-2000:]
    assert errors[0].startswith("error: the run ended early: interrupted")
    result = json.loads(files["output"].read_text())
    if verb == "acceptance":
        assert result["eagle"]["partial"] == "interrupted"
        assert 0 < result["completed"] == len(result["eagle"]["requests"]) < QUESTIONS
        assert 1 < result["spec_decode_acceptance_length"] <= K + 1
    else:
        assert result["partial"] == "interrupted"
        answers = {row["answers"] for row in result["rows"]}
        assert len(answers) == 1, "every way should have answered the same questions"
        assert 0 < answers.pop() < QUESTIONS
    if verb == "compare":
        assert [row["identical"] for row in result["rows"]] == [row["answers"] for row in result["rows"]]
    assert "The run ended early: interrupted" in files["html"].read_text()
    assert files["plot"].stat().st_size > 10_000
    assert workers
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "engines should not be left behind"


def test_nothing_is_written_before_anything_is_known(start: Callable[..., Running], files: dict[str, Path]) -> None:
    running = start("acceptance")
    deadline = time.monotonic() + PATIENCE
    while not running.workers():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = running.workers()
    code, errors = running.interrupt(signal.SIGTERM)
    assert code == 1
    assert errors == ["error: interrupted while the engines were starting. Nothing was measured."], running.shown
    assert not files["output"].exists()
    assert not files["html"].exists()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
