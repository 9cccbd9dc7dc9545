"""What a result says first: the sentence, the words for speeds and answers, the command to paste."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from vllm_eagle_plugin.benchmarks.methods import serve_command
from vllm_eagle_plugin.benchmarks.report import report_of
from vllm_eagle_plugin.benchmarks.report.answer_picture import Step, draw
from vllm_eagle_plugin.benchmarks.report.compare_page import speed_words
from vllm_eagle_plugin.benchmarks.report.terminal import show
from vllm_eagle_plugin.benchmarks.schema import Figure
from vllm_eagle_plugin.benchmarks.speed_schema import Advice
from vllm_eagle_plugin.benchmarks.sweep import _measured

from .language import Language
from .pages import acceptance_result, compare_result, sweep_result


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (1.13, 1.05, 1.22, "1.13 times as fast as plain decoding (1.05 to 1.22)"),
        (1.04, 0.96, 1.13, "no difference to plain decoding that this run can show, 1.04 times (0.96 to 1.13)"),
        (0.87, 0.78, 0.95, "0.87 times the speed of plain decoding: slower (0.78 to 0.95)"),
        (1.5, None, None, "1.50 times the speed of plain decoding, too few questions for an interval"),
    ],
)
def test_a_speed_in_words(value: float, low: float | None, high: float | None, words: str) -> None:
    assert speed_words(Figure(value=value, low=low, high=high)) == words


def shown(result: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(console, report_of(result))
    return console.file.getvalue()


def test_verdict_first_then_tables() -> None:
    result = acceptance_result()
    length = result.eagle.acceptance.acceptance_length
    lines = shown(result).splitlines()
    assert lines[0].startswith(
        f"Acceptance length {length.value:.2f} ({length.low:.2f} to {length.high:.2f}): of 3 drafted"
    )
    assert any("acceptance length (vLLM's)" in line and f"{length.value:.3f}" in line for line in lines)
    assert "mathematics" in "\n".join(lines)


def test_answers_are_same_tied_or_wrong() -> None:
    text = shown(compare_result())
    first = text.splitlines()[0]
    assert first.startswith("a head with a long name, k=3: 2.15 times as fast as plain decoding")
    assert first.endswith("WRONG: answers that differ from plain decoding's beyond rounding: 1."), first
    assert "9 same, 3 tied" in text
    assert "1 WRONG" in text
    harmless = compare_result().model_copy(update={"rows": compare_result().rows[:2]})
    assert "WRONG" not in shown(harmless), "a tie is no reason to worry"


def test_a_sweep_advises_from_what_was_measured() -> None:
    """The fastest measured way, trees included; a command only where it is faster for sure."""
    result = sweep_result()
    model = Advice(concurrency=1, best_k=2, speedup=9.9, break_even_length=1.2, speedup_if_perfect=12.0)
    rows = [row.model_copy(update={"impossible": None}) for row in [*result.rows, *result.trees]]
    chosen = _measured("t", model, rows)
    fastest = max((r for r in rows if r.speculative_config and r.concurrency == 1), key=lambda r: r.speedup.value or 0)
    assert (chosen.best, chosen.measured, chosen.best_k) == (fastest.name, fastest.speedup, 2)
    assert chosen.command == "vllm-eagle serve t --head head -k 1"
    slow = [r.model_copy(update={"speedup": Figure(value=1.1, low=0.9, high=1.2)}) for r in rows]
    unsure = _measured("t", model, slow)
    assert unsure.command is None
    text = shown(result.model_copy(update={"advice": [unsure, chosen]}))
    assert text.startswith("At concurrency 1: do not speculate with this head; ")
    assert "vllm-eagle serve t --head head -k 1" in text


@pytest.mark.parametrize(
    ("config", "command"),
    [
        ({"model": "h", "num_speculative_tokens": 2}, ["vllm-eagle", "serve", "t", "--head", "h", "-k", "2"]),
        (
            {"model": "h", "num_speculative_tokens": 8, "eagle": {"tree": {"kind": "auto"}}},
            ["vllm-eagle", "serve", "t", "--head", "h", "-k", "8", "--tree", "auto"],
        ),
        (
            {"model": "h", "num_speculative_tokens": 6, "eagle": {"tree": {"kind": "static", "branches": [2, 2]}}},
            ["vllm-eagle", "serve", "t", "--head", "h", "-k", "6", "--tree", '{"kind": "static", "branches": [2, 2]}'],
        ),
        (
            {"model": "h", "num_speculative_tokens": 4, "eagle": {"adaptive": True}},
            ["vllm-eagle", "serve", "t", "--head", "h", "-k", "4", "--adaptive"],
        ),
        (
            {"method": "ngram", "num_speculative_tokens": 3},
            ["vllm", "serve", "t", "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'],
        ),
    ],
)
def test_the_command_to_paste(config: dict[str, Any], command: list[str]) -> None:
    assert shlex.split(serve_command("t", config)) == command


def test_a_trace_in_a_pipe(language: Language, tmp_path: Path) -> None:
    """Without colours rejected drafts are marked, and a line says what came of it."""
    console = Console(file=io.StringIO(), width=80)
    draw(console, language.target, "why", [Step([], [1], []), Step([2, 3], [4], [9, 8])], tmp_path / "t.svg")
    assert console.file.getvalue().splitlines() == [
        "why",
        "[-so-]: drafted and rejected",
        "w1w2w3[-w9w8-]w4",
        "4 tokens in 2 steps, acceptance length 3.00",
    ]
    assert "[-" not in (tmp_path / "t.svg").read_text()
