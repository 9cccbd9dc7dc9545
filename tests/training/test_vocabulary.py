"""A loss over part of the vocabulary against the one over all of it."""

from __future__ import annotations

import math

import pytest
import torch
from vllm_eagle_plugin.training import vocabulary
from vllm_eagle_plugin.training.build import build
from vllm_eagle_plugin.training.corpus import collate, counted_positions, read_corpus
from vllm_eagle_plugin.training.objective import _SoftCrossEntropy
from vllm_eagle_plugin.training.recipe import load_recipe
from vllm_eagle_plugin.training.teacher import identify
from vllm_eagle_plugin.training.vocabulary import Vocabulary

from vllm_eagle_plugin.errors import UsageError
from vllm_eagle_plugin.targets.target import read_target

SIZE, FREQUENT, OTHERS, ROWS = 4000, 200, 100, 4


def distributions(spread):
    """Logits of a head and of a target [ROWS, SIZE]; token 0 is the most likely, and so on downwards."""
    chance = torch.Generator().manual_seed(0)
    fall = -spread * torch.arange(SIZE).log1p()
    return (fall + torch.randn(ROWS, SIZE, generator=chance) for _ in range(2))


def losses(logits, wanted, corrected=True):
    """Loss and its gradient by the logits of 400 draws, averaged."""
    words = Vocabulary(-torch.arange(SIZE), FREQUENT, OTHERS)
    total, slope = torch.zeros(ROWS), torch.zeros_like(logits)
    for seed in range(400):
        rows, correction = words.draw(seed, torch.device("cpu"))
        correction = correction if corrected else torch.zeros_like(correction)
        chosen = logits[:, rows].requires_grad_()
        loss = _SoftCrossEntropy.apply(chosen, (wanted[:, rows] + correction).softmax(-1), correction)
        loss.sum().backward()
        total += loss.detach() / 400
        slope[:, rows] += chosen.grad / 400
    return total, slope


@pytest.mark.parametrize("spread", [0.7, 1.2])
def test_in_expectation_it_is_the_whole_loss(spread):
    """Tails of 40% and of 6%: loss and gradient agree, and without the correction they do not."""
    logits, wanted = distributions(spread)
    whole = logits.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(whole, wanted.softmax(-1), reduction="none")
    loss.sum().backward()
    total, slope = losses(logits, wanted)
    assert torch.allclose(total, loss.detach(), rtol=0.01)
    assert float((slope - whole.grad).norm() / whole.grad.norm()) < 0.1
    naive, crooked = losses(logits, wanted, corrected=False)
    assert not torch.allclose(naive, loss.detach(), rtol=0.03)
    assert float((crooked - whole.grad).norm() / whole.grad.norm()) > 0.15


def test_draws():
    counts = torch.zeros(30)
    counts[[4, 9, 20]] = torch.tensor([5.0, 9, 7])
    words = Vocabulary(counts, 3, 6)
    rows, correction = words.draw(1, torch.device("cpu"))
    assert rows[:3].tolist() == [9, 20, 4]
    assert len(set(rows.tolist())) == 9
    assert correction.tolist() == pytest.approx([0.0] * 3 + [math.log(27 / 6)] * 6)
    assert torch.equal(rows, words.draw(1, torch.device("cpu")).rows)
    assert not torch.equal(rows, words.draw(2, torch.device("cpu")).rows)
    often = torch.bincount(
        torch.cat([words.draw(seed, torch.device("cpu")).rows for seed in range(2000)]), minlength=30
    )
    assert set(often[[4, 9, 20]].tolist()) == {2000}
    others = often[often < 2000].double() / 2000
    assert float((others - 6 / 27).abs().max()) < 0.05
    assert Vocabulary.of(torch.ones(vocabulary.OTHERS + 10), 10) is None, "all of them"
    assert Vocabulary.of(torch.ones(vocabulary.OTHERS + 11), 10) is not None
    assert Vocabulary.of(torch.ones(vocabulary.OTHERS + 11), 0) is None


@pytest.fixture
def few_others(monkeypatch):
    monkeypatch.setattr(vocabulary, "OTHERS", 8)


@pytest.mark.parametrize(("recipe", "changes"), [("eagle1", ["feature_noise=0"]), ("surgery", []), ("feature", [])])
def test_objectives_over_part_of_the_vocabulary(recipe, changes, few_others, world):
    """Through the objective itself: its mean over draws is what it says in evaluation mode, over all tokens."""
    target = read_target(str(world.target.folder))
    recipe = load_recipe(recipe, [*changes, "loss.vocabulary=8", "precision=fp32", "held_out=8"])
    corpus = read_corpus([world.data], identify(target), recipe.held_out)
    teacher, objective = build(recipe, target, corpus, torch.device("cpu"))
    batch = collate(corpus.train[:4], 40)
    states, counts = teacher(batch.ids[:, :-1]), counted_positions([batch], recipe.unroll.steps)
    with torch.no_grad():
        whole, all_sums = objective.eval()(batch, states, counts, 0)
        objective.train()
        drawn = [objective(batch, states, counts, seed)[0] for seed in range(200)]
        again, sums = objective(batch, states, counts, 199)
    assert float(again) == float(drawn[-1]) != float(drawn[0])
    assert sum(map(float, drawn)) / 200 == pytest.approx(float(whole), rel=0.02)
    assert sums.shape == all_sums.shape
    assert torch.equal(sums[:, 2], counts.float())
    assert objective.head.logits(states.last).shape[-1] == 24, "it is lent all of the target's lm_head again"


def test_a_run_over_part_of_the_vocabulary(few_others, world, tmp_path):
    """It learns what one over all of it learns, and resumes to the same weights."""
    changes = ["loss.vocabulary=8", "epochs=3", "evaluate_every=9"]
    done = world.train("feature", tmp_path / "whole", changes)
    assert done.progress.best_acceptance > 4.9
    while not world.train("feature", tmp_path / "parts", changes, minutes=1e-3, checkpoint_every=50).finished:
        pass
    assert (tmp_path / "whole" / "head.pt").read_bytes() == (tmp_path / "parts" / "head.pt").read_bytes()


@pytest.mark.parametrize("recipe", ["eagle3", "projection"])
def test_heads_with_an_lm_head_of_their_own_have_no_use_for_it(recipe):
    with pytest.raises(UsageError, match=r"loss.vocabulary = 100 .*head.draft_vocab_size"):
        load_recipe(recipe, ["loss.vocabulary=100"])
    with pytest.raises(UsageError, match="every weight"):
        load_recipe("feature-regression", ["loss.mse=0", "loss.vocabulary=100"])
