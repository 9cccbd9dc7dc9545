"""Engines that draft trees, and what tests of them share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine import Engine, engine
from ..random_models import random_prompts

#: So few tokens that random heads are often right, and a tree's later branches are too.
VOCAB = 16


@contextlib.contextmanager
def tree_engine(target: Path, head: Path, nodes: int, eagle: dict[str, Any], **options: Any) -> Iterator[Engine]:
    """An engine as `additional_config`'s section `eagle` asks, with at most `nodes` drafts a step."""
    with engine(target, head, nodes, **{"additional_config": {"eagle": eagle}, **options}) as running:
        yield running


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of mixed lengths, of the few tokens that targets of these tests know."""
    return random_prompts(count, longest, VOCAB, seed)
