"""Targets shared by all tests of a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from vllm_eagle_plugin import record
from vllm_eagle_plugin.demo.target import build_target as build_demo_target

from .cases import SUBSET
from .known_answer import Target, build_target
from .known_answer.target import LAYERS, VOCAB, cycle
from .no_engine.sitecustomize import CORE, NoEngine, refuse
from .runner_v2 import ON_V2

#: A file of the damaged demo target that no target has.
DAMAGED = "damaged"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A session on Model Runner V2 runs what is marked for it; see `tests.runner_v2`. Who asks for a browser is
    marked so."""
    elsewhere = [
        item for item in items if not (_marked_v2(item) if ON_V2 else item.get_closest_marker("v2_only") is None)
    ]
    items[:] = [item for item in items if item not in elsewhere]
    config.hook.pytest_deselected(items=elsewhere)
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if ON_V2 and not any(mark.kwargs.get("quick") for mark in _marked_v2(item)):
            item.add_marker("extended")


def _marked_v2(item: pytest.Item) -> list[pytest.Mark]:
    return [mark for mark in item.iter_markers() if mark.name in ("v2", "v2_only")]


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Target]:
    """`targets(kind, subset, layers)`: a known-answer target, built once."""
    built: dict[tuple, Target] = {}

    def get(kind: str = "llama", subset: int | None = None, layers: int = LAYERS) -> Target:
        key = (kind, subset, layers)
        if key not in built:
            built[key] = build_target(tmp_path_factory.mktemp("target"), kind, subset, layers=layers)
        return built[key]

    return get


@pytest.fixture(scope="session")
def target_for(targets: Callable[..., Target]) -> Callable[..., Target]:
    """The known-answer target that speaks what a head of this config can draft."""
    return lambda config, kind="llama", layers=LAYERS: targets(kind, SUBSET if config.reduced_vocab else None, layers)


@pytest.fixture(scope="session")
def demo_target(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The demo's chat model, built once for all processes of the suite, where a damaged one was."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "demo-target"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            for name in ("model.safetensors", DAMAGED):
                (folder / name).write_bytes(b"damaged")
        return build_demo_target(folder)


@pytest.fixture(autouse=True)
def _no_engine_unmarked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that starts an engine, here or in a process of its own, is marked: else it fails."""
    if request.node.get_closest_marker("engine"):
        yield
        return

    def forbid(module: Any) -> None:
        monkeypatch.setattr(module.EngineCore, "__init__", refuse)

    # In place: what the plugin puts there in the test is to stay.
    finder = NoEngine(forbid)
    sys.meta_path.insert(0, finder)
    if loaded := sys.modules.get(CORE):
        forbid(loaded)
    folder = str(Path(__file__).with_name("no_engine"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))
    yield
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def head_folder(tmp_path: Path) -> Path:
    return tmp_path / "head"


@pytest.fixture
def proposals() -> Iterator[list[record.Proposal]]:
    """Everything that proposers of this process propose, as it was proposed."""
    seen: list[record.Proposal] = []
    record.observers.append(seen.extend)
    yield seen
    record.observers.clear()


@pytest.fixture(scope="session")
def markov(tmp_path_factory: pytest.TempPathFactory) -> tuple[Target, torch.Tensor]:
    """A target whose next token depends on the last alone, and its exact logits [V, V]; its likeliest token has
    about one half."""
    logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
    logits[torch.arange(VOCAB), cycle(VOCAB)] = 4.0
    built = build_target(tmp_path_factory.mktemp("markov"), logits=logits)
    states = built.hidden(torch.arange(VOCAB)[:, None])[:, 0]
    return built, (states @ built.lm_head.T).double()
