"""Pieces of a run against independent, slow, obvious versions of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm_eagle_plugin.training.agreement import measure
from vllm_eagle_plugin.training.corpus import (
    Conversation,
    collate,
    counted_positions,
    plan_steps,
    read_corpus,
)
from vllm_eagle_plugin.training.heads import aux_layers, head_config, new_head
from vllm_eagle_plugin.training.objective import Objective
from vllm_eagle_plugin.training.plots import draw
from vllm_eagle_plugin.training.recipe import Batch, load_recipe
from vllm_eagle_plugin.training.states import StateSource
from vllm_eagle_plugin.training.teacher import States, Teacher, identify

from vllm_eagle_plugin.errors import UsageError
from vllm_eagle_plugin.reference import build_reference
from vllm_eagle_plugin.targets.target import read_target

from ..cases import SUBSET
from .language import write_language


def conversations(count, seed=0):
    chance = np.random.default_rng(seed)
    make = lambda: chance.integers(0, 24, chance.integers(2, 30), dtype=np.int32)  # noqa: E731
    return [Conversation(make(), make(), 0.0) for _ in range(count)]


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("eagle3", [f"head.draft_vocab_size={SUBSET}", "head.layer_ids=[1,3,5]", "unroll.decay=0.5"]),
        ("eagle1", ["feature_noise=0", "loss.mse=0.3"]),
        ("surgery", []),
    ],
)
def test_the_loss_of_a_chain(recipe, changes, worlds):
    """One chain at a time, one token at a time, as an engine drafts: loss and agreement are the same."""
    world = worlds()
    recipe = load_recipe(recipe, [*changes, "precision=fp32"])
    target = read_target(str(world.target.folder))
    config = head_config(recipe, target)
    teacher = Teacher(target, aux_layers(config), torch.float32, torch.device("cpu"))
    counts = torch.arange(24).flip(0)
    head = new_head(config, teacher.lm_head, counts, 0)
    objective = Objective(head, teacher, recipe)
    batch = collate(conversations(3), 40)
    steps = recipe.unroll.steps
    states = teacher(batch.ids[:, :-1])
    loss, sums = objective(batch, states, counted_positions([batch], steps), 0)

    draftable = head.target_ids(torch.arange(config.draft_vocab))
    wanted, right, number = torch.zeros(steps), torch.zeros(steps), torch.zeros(steps)
    for row in range(len(batch.ids)):
        length = int(batch.answers[row].nonzero().max()) + 1
        ids = batch.ids[row, :length]
        for start in range(length - 2):
            tokens = ids[None, : start + 2]
            memory = head.new_memory(torch.arange(start + 1)[None])
            state = head.fuse(states.hidden[row : row + 1, : start + 1])
            for j in range(steps):
                if start + 2 + j >= length:
                    break
                out, state = head(tokens[:, 1:], state, memory)
                tokens = torch.cat((tokens[:, 1:], ids[None, start + 2 + j][None]), 1)
                # The chains of earlier starts ride along; ours is the last.
                q = start + 1 + j
                if batch.answers[row, q + 1]:
                    number[j] += 1
                    logits, says = head.logits(out[0, -1]), teacher.logits(states.last[row, q])
                    right[j] += head.target_ids(logits.argmax()) == says.argmax()
                    if says.argmax() in draftable:
                        wanted[j] += reference_loss(
                            recipe.loss, out[0, -1], states.last[row, q], logits, says[draftable]
                        )
    weights = torch.tensor([recipe.unroll.decay**j for j in range(steps)])
    assert torch.equal(counted_positions([batch], steps), number.long())
    assert torch.allclose(sums[:, 0], wanted, rtol=1e-4)
    assert torch.equal(sums[:, 1], right)
    assert float(loss.detach()) == pytest.approx(float((wanted / number) @ weights / weights.sum()), rel=1e-4)


def reference_loss(weights, feature, wanted_feature, logits, wanted_logits):
    cross_entropy = torch.nn.functional.cross_entropy(logits[None], wanted_logits.softmax(-1)[None])
    terms = weights.cross_entropy * cross_entropy
    if weights.smooth_l1:
        terms = terms + weights.smooth_l1 * torch.nn.functional.smooth_l1_loss(feature, wanted_feature)
    if weights.mse:
        terms = terms + weights.mse * torch.nn.functional.mse_loss(feature, wanted_feature)
    if weights.logit_mse:
        terms = terms + weights.logit_mse * torch.nn.functional.mse_loss(logits, wanted_logits)
    return terms.detach()


def test_gradients_of_the_loss(world):
    """The hand-written gradient of the cross-entropy, against finite differences in the weights."""
    recipe = load_recipe("eagle1", ["precision=fp32", "unroll.steps=2", "feature_noise=0"])
    target = read_target(str(world.target.folder))
    teacher = Teacher(target, None, torch.float32, torch.device("cpu"))
    objective = Objective(new_head(head_config(recipe, target), teacher.lm_head, torch.ones(24), 0), teacher, recipe)
    batch = collate(conversations(2), 20)
    states, counts = teacher(batch.ids[:, :-1]), counted_positions([batch], 2)
    loss, _ = objective(batch, states, counts, 0)
    loss.backward()
    weight = objective.head.fc.weight
    direction = weight.grad / weight.grad.norm()
    moved = []
    with torch.no_grad():
        for sign in (1, -1):
            weight.add_(sign * 1e-2 * direction)
            moved.append(float(objective(batch, states, counts, 0)[0]))
            weight.sub_(sign * 1e-2 * direction)
    assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(float(weight.grad.norm()), rel=0.02)


def test_noise_is_on_the_features_while_training(world):
    recipe = load_recipe("eagle1", ["precision=fp32", "feature_noise=0.5"])
    target = read_target(str(world.target.folder))
    teacher = Teacher(target, None, torch.float32, torch.device("cpu"))
    objective = Objective(new_head(head_config(recipe, target), teacher.lm_head, torch.ones(24), 0), teacher, recipe)
    hidden = torch.zeros(2, 5, 256)
    one, again, other = (objective._disturbed(hidden, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 0.5 < 0.51 + one.abs().max()
    assert one.std() == pytest.approx(0.5 / 3**0.5, rel=0.05)
    assert torch.equal(objective.eval()._disturbed(hidden, 1), hidden)


def test_draft_vocabulary_is_the_most_frequent_tokens(world):
    recipe = load_recipe("eagle3", ["head.draft_vocab_size=5", "head.layer_ids=[1,3,5]"])
    counts = torch.zeros(24)
    counts[[3, 7, 8, 20, 23]] = torch.tensor([5.0, 9, 1, 2, 4])
    rows = torch.randn(24, 256)
    head = new_head(head_config(recipe, read_target(str(world.target.folder))), rows, counts, 0)
    assert head.target_ids(torch.arange(5)).tolist() == [3, 7, 8, 20, 23]
    assert torch.equal(head.lm_head.weight, rows[[3, 7, 8, 20, 23]])


def test_steps_hold_every_conversation_once():
    rows = conversations(100)
    batch = Batch(tokens=400, micro_batches=2, length=50)
    plan = plan_steps(rows, batch, 1)
    used = [i for step in plan for group in step for i in group]
    assert len(set(used)) == len(used)
    assert all(len(step) == 2 for step in plan)
    sizes = [len(group) * max(min(len(rows[i]), 50) for i in group) for step in plan for group in step]
    assert max(sizes) <= 200
    left = sum(len(rows[i]) for i in set(range(100)) - set(used))
    assert left <= 200, "at most one micro-batch is left out"
    assert plan == plan_steps(rows, batch, 1)
    assert plan != plan_steps(rows, batch, 2)
    assert len(plan) == len(plan_steps(rows, batch, 2))


def test_held_out_conversations_stay_out(world, tmp_path):
    identity = identify(read_target(str(world.target.folder)))
    one = read_corpus([write_language(world.target, tmp_path / "one", shards=1)], identity, 8)
    two = read_corpus([write_language(world.target, tmp_path / "two", shards=2)], identity, 8)
    key = lambda c: (tuple(c.prompt), tuple(c.answer))  # noqa: E731
    assert [key(c) for c in one.held_out] == [key(c) for c in two.held_out]
    assert (len(one.train), len(two.train)) == (88, 184)
    assert one.digest != two.digest
    assert int(two.token_counts(24).sum()) == two.answer_tokens == sum(len(c.answer) for c in two.train)


@pytest.mark.parametrize(
    ("prompt", "chain", "per_position"),
    [
        (3, [1.0, 1 / 2, 1 / 2], [1.0, 1.0, 1.0]),  # drafts from 2 (all right) and, behind those, from 6
        (4, [1.0, 2 / 5, 2 / 5], [1.0, 0.0, 0.0]),  # drafts from 3, 5 and 7, where only the first is right
    ],
)
def test_acceptance_of_a_known_head(prompt, chain, per_position):
    """Drafts that are all right at even positions, and only the first at odd ones: every figure by hand."""
    text = np.arange(1, 13, dtype=np.int32)
    drafts = torch.tensor([[[p + 3, -1 if p % 2 else p + 4, p + 5] for p in range(11)]]).expand(2, -1, -1)
    states = lambda ids: States(ids[..., None].float(), ids[..., None].float())  # noqa: E731
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vllm_eagle_plugin.training.agreement.draft_chain", lambda *_: drafts)
        of_one_token = Conversation(text[:prompt], text[prompt : prompt + 1], 0.0)  # says nothing of three drafts
        asked = [Conversation(text[:prompt], text[prompt:], 0.0), of_one_token]
        found = measure(torch.nn.Linear(1, 1), states, asked, 3, 99)
    assert found.chain == pytest.approx(chain)
    assert found.per_position == pytest.approx(per_position)
    assert found.acceptance_length == pytest.approx(1 + sum(per_position))


def test_kept_states_are_the_computed_ones(world, tmp_path):
    target = read_target(str(world.target.folder))
    teacher = Teacher(target, [1, 3, 5], torch.bfloat16, torch.device("cpu"))
    ids = collate(conversations(4), 40).ids
    fresh = teacher(ids)
    source = StateSource(teacher, tmp_path / "states", 1 << 30)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(source(ids), fresh, strict=True))
    assert (source.computed, source.read) == (1, 1)
    used = sum(f.stat().st_size for f in (tmp_path / "states").iterdir())
    again = StateSource(teacher, tmp_path / "states", used + 100)
    again(ids)
    again(ids[:2])
    again(ids[:2])
    assert (again.read, again.computed) == (1, 2), "the budget is used up: nothing more is kept"
    assert sum(f.stat().st_size for f in (tmp_path / "states").iterdir()) == used
    (file,) = (tmp_path / "states").iterdir()
    file.write_bytes(file.read_bytes()[:100])  # cut off by a crash
    assert all(torch.equal(a, b) for a, b in zip(again(ids), fresh, strict=True))


def test_a_cached_run_is_the_same_run(world, tmp_path):
    changes = ["epochs=2", "evaluate_every=9"]
    world.train("feature", tmp_path / "plain", changes)
    world.train("feature", tmp_path / "cached", changes, state_cache=1 << 30)
    assert (tmp_path / "plain" / "head.pt").read_bytes() == (tmp_path / "cached" / "head.pt").read_bytes()
    assert list((tmp_path / "cached" / "run" / "states").iterdir())


def test_states_are_what_a_causal_pass_gives(world):
    """Padding behind a sequence changes nothing in it, and layers are counted as vLLM does."""
    target = read_target(str(world.target.folder))
    teacher = Teacher(target, [0, 3], torch.float32, torch.device("cpu"))
    ids = torch.arange(10)[None]
    short, padded = teacher(ids), teacher(torch.nn.functional.pad(ids, (0, 5)))
    assert torch.allclose(short.hidden, padded.hidden[:, :10], atol=1e-5)
    assert torch.equal(short.hidden[..., :256], teacher.embedding[ids])
    assert torch.allclose(teacher.logits(short.last), world.target.model(ids).logits, atol=1e-4)


def test_pictures_of_runs(world, tmp_path):
    world.train("surgery", tmp_path / "head", ["epochs=1", "evaluate_every=3"])
    draw([tmp_path / "head"], tmp_path / "runs.svg")
    picture = (tmp_path / "runs.svg").read_text()
    assert picture.startswith("<?xml")
    for outputs, name in (([tmp_path], "runs.svg"), ([tmp_path / "head"], "runs.gif")):
        with pytest.raises(UsageError):
            draw(outputs, tmp_path / name)


def test_references_are_what_is_trained(world):
    """No copy of the arithmetic: the module of the objective is the one that defines the head."""
    recipe = load_recipe("feature", ["precision=fp32"])
    config = head_config(recipe, read_target(str(world.target.folder)))
    head = new_head(config, torch.zeros(24, 256), torch.ones(24), 0)
    assert type(head) is type(build_reference(config))
    teacher = SimpleNamespace(embedding=torch.zeros(24, 256), lm_head=torch.zeros(24, 256), lm_head_bias=None)
    assert Objective(head, teacher, recipe).head is head
