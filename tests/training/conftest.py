"""A target, its data, and a way to train on them, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm_eagle_plugin.training.recipe import load_recipe
from vllm_eagle_plugin.training.trainer import Options, Outcome, train

from ..known_answer import Target
from .language import write_language

#: Small and quick: 9 steps an epoch.
SMALL = ["precision=fp32", "batch.tokens=512", "batch.length=32", "held_out=8", "evaluate_every=1000"]


@dataclass(frozen=True)
class World:
    """A known-answer target with the conversations it wrote."""

    target: Target
    data: Path

    def train(self, recipe: str, output: Path, changes: list[str], **options) -> Outcome:
        options = Options(**{"draft_tokens": 4, **options})
        return train(load_recipe(recipe, [*SMALL, *changes]), str(self.target.folder), self.data, output, options)


@pytest.fixture(scope="session")
def worlds(targets: Callable[..., Target], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """`worlds(subset)`: a target that speaks `subset` tokens (default: all), with its data."""
    made: dict[int | None, World] = {}

    def get(subset: int | None = None) -> World:
        if subset not in made:
            target = targets("llama", subset)
            made[subset] = World(target, write_language(target, tmp_path_factory.mktemp("data") / "data"))
        return made[subset]

    return get


@pytest.fixture(scope="session")
def world(worlds: Callable[..., World]) -> World:
    return worlds()
