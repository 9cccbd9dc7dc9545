"""Engines that draft trees, and what tests of them share."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine import Engine, engine

#: So few tokens that random heads are often right, and a tree's later branches are too.
VOCAB = 16


@contextlib.contextmanager
def tree_engine(target: Path, head: Path, nodes: int, eagle: dict[str, Any], **options: Any) -> Iterator[Engine]:
    """An engine as `additional_config`'s section `eagle` asks, with at most `nodes` drafts a step."""
    settings = {"additional_config": {"eagle": eagle}, "worker_cls": "vllm_eagle_plugin.TreeWorker"}
    with engine(target, head, nodes, **{**settings, **options}) as running:
        yield running


def prompts(count: int, longest: int, seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    """Random prompts of mixed lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab) for _ in range(rng.randint(3, longest))] for _ in range(count)]
