"""The whole of a tree step on `meta` tensors, which hold nothing: whoever asks the host for a value gets an error."""

import pytest
import torch
from torch import Tensor

from vllm_eagle_plugin.tree.compact import linear, move, moves, rows, slots
from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.grow import Beams, grow, select
from vllm_eagle_plugin.tree.trees import Trees, visible
from vllm_eagle_plugin.tree.walk import Paths, drawn, greedy

META = torch.device("meta")
BATCH, VOCAB = 3, 5000
SHAPES = [
    Shape.chain(4),
    Shape("static", 16, 3, 16, (4, 2, 1)),
    Shape("dynamic", 16, 5, 4, considered=16),
    Shape("dynamic", 63, 8, 8),
]


def numbers(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device=META)


def grown(shape: Shape) -> Trees:
    def level(beams: Beams) -> Tensor:
        assert visible(beams.seen, beams.drafted).shape == (*beams.tokens.shape, beams.drafted)
        return torch.zeros(*beams.tokens.shape, VOCAB, device=META)

    found = grow(torch.zeros(BATCH, VOCAB, device=META), level, shape, ids=numbers(VOCAB))
    counts, levels = numbers(BATCH), numbers(BATCH)
    return select(found, shape.nodes, counts, levels, chains=levels > 1).trees


def test_meta_tensors_do_refuse_the_host():
    with pytest.raises((RuntimeError, NotImplementedError)):
        numbers(1).item()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind} {s.nodes}")
def test_growing_masking_walking_and_compacting_ask_the_host_for_nothing(shape: Shape):
    trees = grown(shape)
    assert all(t.device == META for t in trees)
    assert trees.tokens.shape == trees.ancestors.shape == (BATCH, shape.nodes)
    trees = trees.first(numbers(BATCH))
    base, width = numbers(BATCH), shape.depth + 1
    assert trees.positions(base).shape == (BATCH, shape.nodes + 1)
    assert trees.chains.shape == (BATCH,)

    def sample(node: Tensor, path: Paths) -> Tensor:
        return (torch.zeros(BATCH, VOCAB, device=META) + node[:, None] + path.counts[:, None]).argmax(-1)

    for paths in (
        greedy(trees, numbers(BATCH, shape.nodes + 1), shape.depth),
        drawn(trees, sample, shape.depth),
    ):
        assert paths.tokens.shape == paths.nodes.shape == (BATCH, width)
        moved = moves(paths)
        hidden = torch.zeros(BATCH * (shape.nodes + 1), 8, device=META)
        move(hidden, rows(moved, base))
        assert slots(moved, base, numbers(BATCH, 9).int(), 16).source.shape == (BATCH * shape.depth,)
        assert linear(base, shape.nodes).shape == (BATCH, shape.nodes + 1)
