"""Data folders of a known-answer target: conversations that walk its language."""

from __future__ import annotations

import json
import random
from pathlib import Path

from vllm_eagle_plugin.training.teacher import identify

from vllm_eagle_plugin.targets.target import read_target

from ..known_answer import Target


def write_language(target: Target, folder: Path, shards: int = 2, rows: int = 96, seed: int = 0) -> Path:
    """`shards` shards of greedy answers to prompts of 3 to 8 tokens."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    identity = identify(read_target(str(target.folder)))
    (folder / "manifest.json").write_text(json.dumps({"target": identity, "settings": {}}))
    for shard in range(shards):
        lines = []
        for _ in range(rows):
            prompt = chance.randint(3, 8)
            start = int(target.successor[chance.randrange(len(target.successor))])
            walk = target.walk(start, prompt + chance.randint(12, 24))
            lines.append(json.dumps({"prompt": walk[:prompt], "answer": walk[prompt:], "temperature": 0.0}))
        (folder / f"shard{shard:04d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
