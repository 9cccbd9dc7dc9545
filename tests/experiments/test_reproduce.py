"""The command that measures everything again: what it runs, what it keeps, what it says when something fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.schema import Figure
from vllm_eagle_plugin.benchmarks.tree_shapes import tree_method

from experiments import reproduce, results
from experiments.history import Line, apart, changes, read
from experiments.worthless import write_worthless
from vllm_eagle_plugin.errors import HeadError, UsageError

from ..bench.language import Language
from ..bench.pages import acceptance_result, compare_result, sweep_result

SPREAD = {"1": {"value": 0.5, "low": 0.4, "high": 0.6}}
COST = {"stock_ms": 30.0, "tree_ms": 31.5, "ratio": {"value": 1.05, "low": 1.0, "high": 1.1}}
WHERE = {"environment": acceptance_result().eagle.environment.model_dump()}
PLAIN_FILES: dict[str, dict[str, Any]] = {
    "tree_overhead": WHERE | {"contexts": {"100": {"texts": 6, "step": COST, "verify": COST}}},
    "draft_step": WHERE | {"figures": {"ratio": {"feature": SPREAD}}},
    "convert_speed": WHERE
    | {"speed_against_copying": 0.7, "peak_bytes": 5e8, "head_bytes": 4e9, "largest_tensor_bytes": 2e9},
}


def runner(asked: list[str], broken: str = "") -> Callable[[list[str]], int]:
    """Stands in for the processes: writes an invented result, and fails at `broken`."""
    results = {"acceptance": acceptance_result(), "sweep": sweep_result(), "tree_shapes": sweep_result()}

    def run(command: list[str]) -> int:
        file = Path(next(a for a in command if a.startswith(("--output=", "--json="))).split("=")[1])
        asked.append(file.stem)
        if file.stem == broken:
            return 1
        found = PLAIN_FILES.get(file.stem)
        file.write_text(json.dumps(found) if found else results.get(file.stem, compare_result()).model_dump_json())
        return 0

    return run


def main(folder: Path, **changes: Any) -> None:
    options = {"prompts": "builtin", "beside": None, "only": None, "quick": False}
    reproduce.main(**{"target": "t", "head": "h", "folder": folder, **options, **changes})


@pytest.fixture(autouse=True)
def worthless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reproduce, "WORTHLESS", tmp_path / "worthless")
    monkeypatch.setattr(reproduce, "HISTORY", tmp_path / "history.jsonl")
    monkeypatch.setattr(results, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(results, "DOCUMENTS", ("none",))
    monkeypatch.setattr(reproduce, "write_worthless", lambda head, folder: folder.mkdir(exist_ok=True))
    return tmp_path / "worthless"


def test_everything_leaves_a_result_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reproduce, "run", runner(asked))
    main(tmp_path)
    main(tmp_path, only=["sweep", "acceptance"])
    everything = [name for name in reproduce.NAMES if name != "demo"]  # the demo is of its own models
    assert asked == [*everything, "acceptance", "sweep"]
    first, second = read(tmp_path / "history.jsonl")
    assert {name.split(":")[0] for name in first.figures} == {*everything, "sweep_cost"}
    assert {name.split(":")[0] for name in second.figures} == {"acceptance", "sweep", "sweep_cost"}
    length = acceptance_result().eagle.acceptance.acceptance_length
    assert first.figures["acceptance: value, acceptance length"].value == pytest.approx(length.value, abs=1e-4)
    assert first.figures["draft_step: batch 1, ratio: feature"].value == 0.5
    assert first.figures["tree_overhead: ratio, 100 tokens of context"].value == 1.05
    assert {"cpu", "cores"} <= set(first.environment.hardware)
    assert len([*changes([first], second)]) == len(second.figures)
    assert not any(moved for *_, moved in changes([first], second))
    kept = results.read("compare")
    row = compare_result().rows[1]
    assert row.acceptance is not None
    assert kept.cell(row.name, "acceptance length")[0] == pytest.approx(
        row.acceptance.acceptance_length.value, abs=1e-4
    )
    assert kept.commit
    assert kept.date == compare_result().environment.date[:10]
    assert sum(file.stat().st_size for file in (tmp_path / "kept").iterdir()) < 20_000


def test_a_quick_run_leaves_the_repository_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "run", runner([]))
    main(tmp_path / "quick", only=["compare"], quick=True)
    assert not (tmp_path / "kept").exists()
    assert not (tmp_path / "history.jsonl").exists()
    assert (tmp_path / "quick" / "results" / "compare.json").exists()


def test_other_heads_are_compared(tmp_path: Path) -> None:
    """And nothing else is asked of them."""
    found = {n: reproduce.arguments(n, "t", "h", "builtin", tmp_path, False, ["a", "b"]) for n in reproduce.NAMES}
    heads = {n: [what for flag, what in pairwise(a) if flag == "--head"] for n, a in found.items()}
    assert heads["compare"] == ["h", "a", "b"]
    assert heads["sweep"] == heads["acceptance"] == ["h"]


def test_shapes_are_trees_of_16_nodes_at_most() -> None:
    head = Method("h", {"model": "h", "num_speculative_tokens": 3})
    found = [tree_method(head, shape).speculative for shape in reproduce.SHAPES]
    assert all(config and config["num_speculative_tokens"] <= 16 for config in found)


def test_random_weights_are_those_of_no_head(tmp_path: Path) -> None:
    """They are as many and as large, what is not a matrix stays, and whoever loads them finds nothing amiss."""
    head = tmp_path / "head"
    head.mkdir()
    (head / "config.json").write_text("{}")
    tensors = {
        "fc.weight": torch.ones(64, 32) + torch.arange(32.0),
        "norm.weight": torch.ones(8),
        "d2t": torch.arange(4),
    }
    save_file(tensors, head / "model.safetensors", metadata={"format": "pt", "sha": "1"})
    found = write_worthless(str(head), tmp_path / "noise")
    noise = load_file(found / "model.safetensors")
    assert torch.equal(noise["norm.weight"], tensors["norm.weight"])
    assert torch.equal(noise["d2t"], tensors["d2t"])
    assert noise["fc.weight"].std().item() == pytest.approx(tensors["fc.weight"].std().item(), rel=0.1)
    both = torch.stack([noise["fc.weight"].flatten(), tensors["fc.weight"].flatten()])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 0.1
    with safe_open(found / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "sha": "1"}
    assert (found / "config.json").exists()
    with pytest.raises(UsageError, match="someone/head is no folder"):
        write_worthless("someone/head", tmp_path / "noise")


def test_a_failure_spares_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reproduce, "run", runner(asked, broken="compare"))
    with pytest.raises(HeadError, match=r"^failed: compare\. Done: acceptance, sweep\.$"):
        main(tmp_path, only=["acceptance", "compare", "sweep"])
    (line,) = read(tmp_path / "history.jsonl")
    assert line.failed == ["compare"]
    assert {name.split(":")[0] for name in line.figures} == {"acceptance", "sweep", "sweep_cost"}


def test_ctrl_c_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    run = runner(asked)

    def interrupted(command: list[str]) -> int:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run(command)

    monkeypatch.setattr(reproduce, "run", interrupted)
    with pytest.raises(HeadError, match=r"^interrupted: sweep, trees\. Done: acceptance, compare\.$"):
        main(tmp_path, only=["acceptance", "compare", "sweep", "trees"])
    assert [line.failed for line in read(tmp_path / "history.jsonl")] == [["sweep", "trees"]]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--only nonsense"):
        main(tmp_path, only=["nonsense"])
    (tmp_path / "history.jsonl").write_text('{"target": 3}\n')
    with pytest.raises(HeadError, match=r"history\.jsonl, line 1: environment"):
        main(tmp_path)


def test_changes() -> None:
    environment = acceptance_result().eagle.environment
    fields = {"environment": environment, "target": "t", "head": "h", "head_sha256": "1", "quick": False, "failed": []}
    old = Line(**fields, figures={"a": Figure(value=1.5, low=1.4, high=1.6), "b": Figure(value=2.0)})
    new = old.model_copy(update={"figures": {"a": Figure(value=1.2, low=1.1, high=1.3), "b": Figure(value=9.0)}})
    assert [(name, moved) for name, *_, moved in changes([old], new)] == [("a", True), ("b", False)]
    assert not apart(Figure(value=1, low=0, high=2), Figure(value=2, low=1, high=3))
    other = old.model_copy(update={"head": "another"})
    assert [*changes([other], new)] == []
    later = old.model_copy(update={"figures": {"b": Figure(value=3.0)}})
    found = {name: before.value for name, _, before, *_ in changes([old, later, other], new)}
    assert found == {"a": 1.5, "b": 3.0}, "each against the last line that has it"


def test_the_repositorys_history() -> None:
    """Every line of it can be read, and none of it is of a quick run."""
    lines = read(Path(reproduce.__file__).with_name("history.jsonl"))
    assert lines
    assert not any(line.quick for line in lines)


@pytest.mark.engine
@pytest.mark.extended
def test_quick_run_of_everything(language: Language, tmp_path: Path) -> None:
    target = shutil.copytree(language.target, tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    models = ["--target", str(target), "--head", str(language.head)]
    command = [sys.executable, "-m", reproduce.__name__, "--quick", *models, "-o", str(tmp_path)]
    root = Path(reproduce.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    (line,) = read(tmp_path / "history.jsonl")
    assert line.quick
    assert {name.split(":")[0] for name in line.figures} == {*reproduce.NAMES, "sweep_cost"} - {"demo"}
    lengths = {n: f.value for n, f in line.figures.items() if n.startswith("tree_lengths") and "acceptance" in n}
    assert len(lengths) == 4
    for name in set(reproduce.NAMES) - {"demo", *reproduce.OWN}:
        assert (tmp_path / f"{name}.html").stat().st_size > 10_000
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
