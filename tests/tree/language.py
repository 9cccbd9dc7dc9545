"""Heads for tests of trees: distributions that depend on the path, and trees of them by brute force."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.grow import Beams, Candidates, grow
from vllm_eagle_plugin.tree.trees import Trees, visible

Path = tuple[int, ...]


class Language:
    """A head whose logits after each path are random, and the same each time."""

    def __init__(self, vocabulary: int, seed: int, sharpness: float = 2.0):
        self.vocabulary, self.seed, self.sharpness = vocabulary, seed, sharpness

    def __call__(self, request: int, path: Path) -> Tensor:
        rng = np.random.default_rng([self.seed, request, *(t + 1 for t in path)])
        return torch.tensor(self.sharpness * rng.normal(size=self.vocabulary)).float()

    def logprob(self, request: int, path: Path) -> float:
        """Of the last token of a path, what stands before it given."""
        return self(request, path[:-1]).log_softmax(-1)[path[-1]].item()

    def chain(self, request: int, depth: int) -> Path:
        path: Path = ()
        for _ in range(depth):
            path += (int(self(request, path).argmax()),)
        return path


def grown(language: Language, shape: Shape, batch: int) -> tuple[Candidates, list[Beams]]:
    """The candidates, and the beams of each level. Each beam's path is read off what it sees and what it feeds on."""
    levels: list[Beams] = []
    before: list[list[Path]] = [[()] for _ in range(batch)]

    def level(beams: Beams) -> Tensor:
        nonlocal before
        levels.append(beams)
        tail = torch.cat([b.tokens for b in levels], 1)
        assert tail.shape[1] == beams.drafted <= shape.nodes
        seen = visible(beams.seen, beams.drafted)
        now = [[tuple(tail[b][row].tolist()) for row in seen[b]] for b in range(batch)]
        for b in range(batch):
            for path, source in zip(now[b], beams.sources[b].tolist(), strict=True):
                assert len(path) == beams.depth
                assert path[:-1] == before[b][source]
        before = now
        return torch.stack([torch.stack([language(b, p) for p in now[b]]) for b in range(batch)])

    roots = torch.stack([language(b, ()) for b in range(batch)])
    return grow(roots, level, shape), levels


def paths(trees: Trees, request: int) -> list[Path]:
    """The tokens from the root to each node of a request's tree."""
    found: list[Path] = [()]
    count = int(trees.counts[request])
    for token, parent in zip(trees.tokens[request].tolist()[:count], trees.parents[request].tolist(), strict=False):
        found.append((*found[parent], token))
    return found[1:]


def random_trees(batch: int, nodes: int, vocabulary: int, seed: int, chains: bool = False) -> Trees:
    """Trees of any shape, of up to `nodes` nodes each, siblings with different tokens."""
    rng = np.random.default_rng(seed)
    tokens, parents = np.zeros((2, batch, nodes), dtype=np.int64)
    counts = rng.integers(0, nodes + 1, batch)
    for b in range(batch):
        used: set[tuple[int, int]] = set()
        for i in range(nodes):
            parent, token = (i if chains else int(rng.integers(0, i + 1))), int(rng.integers(vocabulary))
            while (parent, token) in used:
                parent, token = (i if chains else int(rng.integers(0, i + 1))), int(rng.integers(vocabulary))
            used.add((parent, token))
            parents[b, i], tokens[b, i] = parent, token
    return Trees.of(*map(torch.from_numpy, (tokens, parents, counts)))
