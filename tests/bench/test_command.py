"""Bad input to the commands: one clear error, before any engine is started and before any file is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from vllm_eagle_plugin.benchmarks.acceptance import from_counters
from vllm_eagle_plugin.benchmarks.cli import app
from vllm_eagle_plugin.benchmarks.session import Counters

from vllm_eagle_plugin.errors import HeadError, UsageError

TREES, EMPTY = '{"additional_config": {"eagle": {"tree": "auto"}}}', '{"additional_config": {"eagle": {}}}'
NUMBER, NOTHING = '{"method": "ngram", "eagle": 3}', '{"method": "ngram", "eagle": {}}'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["acceptance"], "no --target and no --url"),
        (["acceptance", "--target", "t"], "no head and no method"),
        (["acceptance", "--target", "t", "--method", "medusa"], "medusa without a model"),
        (["acceptance", "--target", "t", "--url", "http://x"], "--url with options of an engine"),
        (["acceptance", "--target", "t", "--method", "ngram", "--prompts", "nowhere"], "no prompt file nowhere"),
        (["acceptance", "--target", "t", "--method", "ngram", "--html", "no/where.html"], "no is not a folder"),
        (["acceptance", "--target", "t", "--method", "ngram", "--plot", "x.gif"], ".png, .svg, .pdf"),
        (["acceptance", "--target", "t", "--method", "ngram", "--engine-args", "{"], "--engine-args is not JSON"),
        (["acceptance", "--target", "t", "--method", "ngram", "--engine-args", TREES], "that say how to draft"),
        (["compare", "--target", "t", "--method", "ngram", "--engine-args", EMPTY], "that say how to draft"),
        (["compare", "--target", "t", "--method", "ngram", "--spec-config", NUMBER], "Input should be a valid dict"),
        (["compare", "--target", "t", "--spec-config", NOTHING], 'eagle is {}. Expected: such as {"tree": "auto"}'),
        (["compare", "--target", "t"], "nothing to compare"),
        (["compare", "--target", "t", "--head", "./nowhere"], "./nowhere is not a folder"),
        (["sweep", "--target", "t", "--method", "ngram", "--batch", "40"], "--batch 40 with 16 questions"),
        (["sweep", "--target", "t", "--method", "ngram", "--synthetic", "9"], "--synthetic 9"),
        (["live", "http://x", "--json"], "--json without --once"),
        (["gate", "nowhere.json", "--baseline", "b.json"], "nowhere.json cannot be read"),
    ],
)
def test_refused(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, HeadError)
    assert isinstance(done.exception, UsageError) or arguments[0] in ("compare", "gate")
    assert words in str(done.exception)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["acceptance", "-k", "0"], 2), (["acceptance", "--temperature", "-1"], 2), (["nonsense"], 2), (["--help"], 0)],
)
def test_usage(arguments: list[str], code: int) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == code


def test_help_is_fast() -> None:
    """The command line imports nothing heavy until a verb runs."""
    heavy = ["torch", "vllm", "numpy", "scipy", "matplotlib", "pydantic", "httpx"]
    code = f"import sys; import vllm_eagle_plugin.benchmarks.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_totals_alone() -> None:
    """vLLM's counters by hand: 10 drafts of 3, accepted 6, 3 and 0."""
    found = from_counters(Counters(10, 30, 9, (6, 3, 0)), [])
    assert found.acceptance_length.value == 1.9
    assert [f.value for f in found.per_position] == [0.6, 0.3, 0.0]
    assert [f.value for f in found.conditional] == [0.6, 0.5, 0.0]
    shorter = from_counters(Counters(10, 28, 9, (6, 3, 0)), [])
    assert [f.value for f in shorter.conditional] == [None] * 3, "unknown when not every step drafted all"
