"""The comparison of heads: what is measured, kept and written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm_eagle_plugin.benchmarks.environment import environment
from vllm_eagle_plugin.benchmarks.interleave import row
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.prompts import Question, fingerprint
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult, Workload, read_result
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.speed_schema import Compare

from experiments import heads
from experiments.heads import main, parameters
from vllm_eagle_plugin.errors import HeadError, UsageError

from ..bench.conftest import OPTIONS
from ..bench.language import Language
from ..bench.pages import acceptance_result, timed


def make_head(folder: Path, model_type: str = "eagle_transformer", **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    save_file({"fc.weight": torch.zeros(3, 4), "d2t": torch.zeros(7, dtype=torch.long)}, folder / "model.safetensors")
    return folder


class Asked:
    """What was asked for; every result is invented."""

    def __init__(self) -> None:
        self.lengths: list[tuple[str, int, float]] = []
        self.engines: list[Method] = []
        self.speeds: list[list[Method]] = []
        self.partial: str | None = None

    @contextlib.contextmanager
    def one_engine(self, target: str, method: Method, options: dict[str, Any]) -> Iterator[Method]:
        self.engines.append(method)
        yield method

    def workload(
        self, session: Method, target: str, head: str, questions: list[Question], prompts: str, sampling: Sampling,
        concurrency: int,
    ) -> Workload:  # fmt: skip
        return acceptance_result().eagle.workload.model_copy(
            update={
                "target": target, "head": head, "prompts_sha256": fingerprint(questions),
                "num_speculative_tokens": session.k, "temperature": sampling.temperature,
                "max_tokens": sampling.max_tokens, "concurrency": concurrency,
            }
        )  # fmt: skip

    def measure(self, session: Method, questions: Any, sampling: Any, concurrency: int, work: Any) -> AcceptanceResult:
        self.lengths.append((Path(work.head).name, session.k, sampling.temperature))
        result = acceptance_result(seed=session.k)
        eagle = result.eagle.model_copy(update={"workload": work, "partial": self.partial})
        return result.model_copy(update={"eagle": eagle, "completed": len(questions)})

    def compare(
        self, target: str, methods: Sequence[Method], questions: Sequence[Question], prompts: str, sampling: Sampling,
        *_: Any,
    ) -> Compare:  # fmt: skip
        self.speeds.append(list(methods))
        trials = [timed("plain", 0, 1, 0.03), *(timed(m.name, m.k, 1, 0.03 + 0.001 * m.k) for m in methods)]
        return Compare(
            target=target, prompts=prompts, prompts_sha256=fingerprint(list(questions)), questions=len(questions),
            temperature=sampling.temperature, max_tokens=sampling.max_tokens, rounds=1, engine={"dtype": "bfloat16"},
            environment=environment(0.0), rows=[row(trial, trials[0]) for trial in trials], differences=[],
            tie_tolerance=0.25,
        )  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    for name in ("one_engine", "workload", "measure", "compare"):
        monkeypatch.setattr(heads, name, getattr(found, name))
    return found


def run(found: list[Path], output: Path, **changes: Any) -> None:
    options = {
        "prompts": "builtin", "limit": 4, "k": None, "temperature": None, "max_tokens": 91, "concurrency": 8,
        "speed_questions": 2, "speed_tokens": 16, "engine_args": None,
    }  # fmt: skip
    main(found, "a/target", output, **{**options, **changes})


def test_every_k_of_every_head_greedy_and_sampled(asked: Asked, tmp_path: Path) -> None:
    found = [make_head(tmp_path / "eagle3"), make_head(tmp_path / "medusa", "medusa", num_heads=6)]
    output = tmp_path / "out"
    run(found, output)
    names, ks = ("eagle3", "medusa"), range(1, 7)
    assert asked.lengths == [(h, k, t) for h in names for k in ks for t in (0.0, 1.0)]
    assert [m.speculative.get("method") for m in asked.engines] == [None] * 12 + ["medusa"] * 12
    assert [[m.k for m in methods] for methods in asked.speeds] == [list(ks)] * 2, "all k together"
    lines = (output / "heads.md").read_text().splitlines()
    assert len(lines) == 2 + 4
    third = acceptance_result(seed=3).eagle.acceptance.acceptance_length
    cells = lines[2].split(" | ")
    assert cells[5] == f"{third.value:.2f} ({third.low:.2f} to {third.high:.2f})"
    assert cells[-2] == "4.0, 8.0, 12.0, 16.0, 20.0, 24.0", "milliseconds of drafting by k"
    assert lines[3].split(" | ")[-2:] == ["", " |"], "speed is measured greedily"


def test_what_was_measured_is_kept(asked: Asked, tmp_path: Path) -> None:
    """Heads are trained one after another: only what is missing is measured."""
    first, second = make_head(tmp_path / "one"), make_head(tmp_path / "two")
    run([first], tmp_path / "out", k=[1, 2], temperature=[0.0])
    run([first, second], tmp_path / "out", k=[1, 2], temperature=[0.0])
    assert asked.lengths == [("one", 1, 0.0), ("one", 2, 0.0), ("two", 1, 0.0), ("two", 2, 0.0)]
    assert len(asked.speeds) == 2
    run([first], tmp_path / "out", k=[2], speed_questions=0)
    assert asked.lengths[4:] == [("one", 2, 1.0)], "only the temperature that was missing"
    run([second], tmp_path / "out", k=[1, 2], temperature=[0.0], speed_questions=3)
    assert len(asked.speeds) == 3, "on more questions"
    save_file({"fc.weight": torch.ones(3, 4)}, first / "model.safetensors")
    run([first], tmp_path / "out", k=[1, 2], temperature=[0.0], speed_questions=0)
    assert asked.lengths[5:] == [("one", 1, 0.0), ("one", 2, 0.0)], "trained on since"
    run([first], tmp_path / "out", k=[1], temperature=[0.0], max_tokens=90, speed_questions=0)
    assert asked.lengths[7:] == [("one", 1, 0.0)], "of other answers"


def test_an_interrupted_run_is_not_kept(asked: Asked, tmp_path: Path) -> None:
    asked.partial = "interrupted"
    head = make_head(tmp_path / "one")
    with pytest.raises(HeadError, match=r"ended early: interrupted\. Run the command again"):
        run([head], tmp_path / "out", k=[1], temperature=[0.0])
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_compared(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    few = make_head(tmp_path / "few", "medusa", num_heads=4)
    with pytest.raises(HeadError, match=r"raw has no config\.json"):
        run([tmp_path / "raw"], tmp_path / "out")
    with pytest.raises(UsageError, match="drafts 4 tokens at most"):
        run([few], tmp_path / "out")
    with pytest.raises(UsageError, match="two heads of one name"):
        run([few, few], tmp_path / "out")
    assert asked.engines == asked.speeds == []
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
        "limit": None, "concurrency": 4, "speed_questions": 2, "speed_tokens": 20, "engine_args": json.dumps(OPTIONS),
        **changes,
    })  # fmt: skip
    for k in (1, 2):
        (file,) = (tmp_path / "out").glob(f"length-*-k{k}.json")
        steps = [a for i in range(4) for a in language.accepted([i] * 3, 20, k)]
        assert read_result(file, AcceptanceResult).spec_decode_acceptance_length == 1 + sum(steps) / len(steps)
    (file,) = (tmp_path / "out").glob("speed-*.json")
    assert all(row.step_ms and row.step_ms.draft > 0 for row in read_result(file, Compare).rows[1:])
