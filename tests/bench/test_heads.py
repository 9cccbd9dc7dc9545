"""The comparison of heads: what is measured, kept and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm_eagle_plugin.benchmarks import heads
from vllm_eagle_plugin.benchmarks.environment import environment
from vllm_eagle_plugin.benchmarks.heads import Heads, main, parameters
from vllm_eagle_plugin.benchmarks.interleave import row
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.prompts import Question, fingerprint
from vllm_eagle_plugin.benchmarks.schema import read_result
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.speed import Compare

from vllm_eagle_plugin.errors import HeadError, UsageError

from .conftest import OPTIONS
from .language import Language
from .pages import timed


def make_head(folder: Path, model_type: str = "eagle_transformer", **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    save_file({"fc.weight": torch.zeros(3, 4), "d2t": torch.zeros(7, dtype=torch.long)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[Method]]]:
    """Runs that were asked for; their results are invented."""
    runs: list[tuple[float, list[Method]]] = []

    def compare(
        target: str, methods: Sequence[Method], questions: Sequence[Question], prompts: str, sampling: Sampling, *_: Any
    ) -> Compare:
        runs.append((sampling.temperature, list(methods)))
        trials = [timed("plain", 0, 1, 0.03), *(timed(m.name, m.k, 1, 0.03 + 0.001 * m.k) for m in methods)]
        return Compare(
            target=target, prompts=prompts, prompts_sha256=fingerprint(list(questions)), questions=len(questions),
            temperature=sampling.temperature, max_tokens=sampling.max_tokens, rounds=1, engine={"dtype": "bfloat16"},
            environment=environment(0.0), rows=[row(trial, trials[0]) for trial in trials], differences=[],
            tie_tolerance=0.25,
        )  # fmt: skip

    monkeypatch.setattr(heads, "compare", compare)
    return runs


def run(found: list[Path], output: Path, **changes: Any) -> None:
    options = {"prompts": "builtin", "limit": 4, "k": None, "temperature": None, "max_tokens": 91, "concurrency": 1}
    main(found, "a/target", output, **{**options, "engine_args": None, **changes})


def test_every_k_of_every_head_greedy_and_sampled(asked: list, tmp_path: Path) -> None:
    found = [make_head(tmp_path / "eagle3"), make_head(tmp_path / "medusa", "medusa", num_heads=6)]
    output = tmp_path / "out"
    run(found, output)
    assert len(asked) == 8, "two heads, two temperatures, six k in groups of three"
    assert all(len(methods) < heads.TOGETHER for _, methods in asked)
    assert [m.speculative.get("method") for _, ms in asked for m in ms] == [None] * 12 + ["medusa"] * 12
    result = read_result(output / "heads.json", Heads)
    keys = [(r.head, r.temperature, r.num_speculative_tokens) for r in result.rows]
    assert keys == [(h, t, k) for h in ("eagle3", "medusa") for t in (0.0, 1.0) for k in range(1, 7)]
    assert {r.parameters for r in result.rows} == {12}
    assert result.rows[2].draft_ms == 12.0
    assert 1 < result.rows[2].acceptance_length.value < 4
    lines = (output / "heads.md").read_text().splitlines()
    assert len(lines) == 2 + 4
    assert lines[0].count("k = ") == 7
    assert f"{result.rows[2].acceptance_length.value:.2f}" in lines[2]
    assert (output / "heads.svg").read_text().startswith("<?xml")


def test_what_was_measured_is_kept(asked: list, tmp_path: Path) -> None:
    """Heads are trained one after another: only what is missing is measured."""
    first, second = make_head(tmp_path / "one"), make_head(tmp_path / "two")
    run([first], tmp_path / "out", k=[1, 2], temperature=[0.0])
    run([first, second], tmp_path / "out", k=[1, 2], temperature=[0.0])
    assert [methods[0].speculative["model"] for _, methods in asked] == [str(first), str(second)]
    save_file({"fc.weight": torch.ones(3, 4)}, first / "model.safetensors")
    run([first], tmp_path / "out", k=[1, 2], temperature=[0.0])
    assert len(asked) == 3, "trained on since"
    with pytest.raises(UsageError, match="other questions"):
        run([first], tmp_path / "out", k=[1, 2], temperature=[0.0], limit=3)


def test_an_interrupted_run_is_not_kept(asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invented = heads.compare
    monkeypatch.setattr(
        heads, "compare", lambda *a: invented(*a).model_copy(update={"partial": "interrupted", "engine": {}})
    )
    head = make_head(tmp_path / "one")
    with pytest.raises(HeadError, match=r"ended early: interrupted\. Run the command again"):
        run([head], tmp_path / "out", k=[1], temperature=[0.0])
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_what_cannot_be_compared(asked: list, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    few = make_head(tmp_path / "few", "medusa", num_heads=4)
    with pytest.raises(HeadError, match=r"raw has no config\.json"):
        run([tmp_path / "raw"], tmp_path / "out")
    with pytest.raises(UsageError, match="drafts 4 tokens at most"):
        run([few], tmp_path / "out")
    with pytest.raises(UsageError, match="two heads of one name"):
        run([few, few], tmp_path / "out")
    assert asked == []
    assert parameters(few) == 12
    tensors = {"blocks.0.layers.0.weight": torch.zeros(3, 4), "lm_heads.0.weight": torch.zeros(99, 4)}
    save_file(tensors, few / "model.safetensors")
    (few / "config.json").write_text(json.dumps({"original_lm_head": True}))
    assert parameters(few) == 12


@pytest.mark.engine
@pytest.mark.extended
def test_real_heads(language: Language, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_token_ids": [i] * 3}) + "\n" for i in range(4)))
    changes = {"prompts": str(prompts), "k": [1, 2], "temperature": [0.0], "max_tokens": 20}
    main([language.head], str(language.target), tmp_path / "out", **{
        "limit": None, "concurrency": 1, "engine_args": json.dumps(OPTIONS), **changes
    })  # fmt: skip
    result = read_result(tmp_path / "out" / "heads.json", Heads)
    for found in result.rows:
        k = found.num_speculative_tokens
        steps = [a for i in range(4) for a in language.accepted([i] * 3, 20, k)]
        assert found.acceptance_length.value == pytest.approx(1 + sum(steps) / len(steps))
        assert found.draft_ms > 0
    assert [r.num_speculative_tokens for r in result.rows] == [1, 2]
