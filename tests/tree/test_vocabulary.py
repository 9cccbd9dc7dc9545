"""Logits over what a head can draft: those that it scatters over the target's vocabulary, and only where that is so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.grow import grow, select
from vllm_eagle_plugin.tree.vocabulary import DraftVocabulary

VOCAB, IDS = 11, torch.tensor([1, 2, 5, 9])
FEATURES = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def scattered(logits: Tensor) -> Tensor:
    full = logits.new_full((len(logits), VOCAB), -torch.inf)
    full[:, IDS] = logits
    return full


def ours() -> SimpleNamespace:
    return SimpleNamespace(target_ids=IDS, draft_logits=lambda x: 2 * x, compute_logits=lambda x: scattered(2 * x))


def stock() -> SimpleNamespace:
    return SimpleNamespace(
        draft_id_to_target_id=torch.nn.Parameter(IDS - torch.arange(4), requires_grad=False),
        lm_head=2,
        logits_processor=lambda head, x: head * x,
        compute_logits=lambda x: scattered(2 * x),
    )


@pytest.mark.parametrize("model", [ours(), stock()], ids=["ours", "stock"])
def test_only_what_can_be_drafted(model: SimpleNamespace) -> None:
    vocabulary = DraftVocabulary(model)
    for _ in range(2):
        assert torch.equal(vocabulary.logits(FEATURES), 2 * FEATURES)
    assert torch.equal(vocabulary.ids, IDS)


def unlike(model: SimpleNamespace, logits: Tensor) -> SimpleNamespace:
    """A head whose `compute_logits` says something else than its lm_head and its map would."""
    model.compute_logits = lambda x: logits
    return model


@pytest.mark.parametrize(
    "model",
    [
        SimpleNamespace(compute_logits=lambda x: scattered(x)),
        SimpleNamespace(draft_id_to_target_id=None, compute_logits=lambda x: scattered(x)),
        unlike(ours(), scattered(3 * FEATURES)),
        unlike(stock(), scattered(2 * FEATURES).nan_to_num(neginf=-1e9)),
    ],
    ids=["no map", "no map here", "other values", "more can be drafted"],
)
def test_else_everything(model: SimpleNamespace) -> None:
    vocabulary = DraftVocabulary(model)
    for _ in range(2):
        assert torch.equal(vocabulary.logits(FEATURES), model.compute_logits(FEATURES))
    assert vocabulary.ids is None


def test_the_same_trees_grow_of_both() -> None:
    shape = Shape("dynamic", nodes=6, depth=2, top_k=2, branches=(), considered=4)
    drawn, logits = [], 2 * FEATURES
    for ids in (None, IDS):
        said = logits if ids is not None else scattered(logits)
        found = grow(said, lambda beams, said=said: said[:, None].expand(-1, beams.tokens.shape[1], -1), shape, ids)
        drawn.append(select(found, 6).trees)
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
    assert set(drawn[0].tokens[0].tolist()) <= set(IDS.tolist())
