"""Dividing a head's inputs in training must change how it learns and nothing of what it is."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.training.build import build
from vllm_eagle_plugin.training.conditioning import condition, unconditioned
from vllm_eagle_plugin.training.corpus import MicroBatch, read_corpus
from vllm_eagle_plugin.training.medusa import MedusaHead
from vllm_eagle_plugin.training.recipe import load_recipe
from vllm_eagle_plugin.training.teacher import identify

from vllm_eagle_plugin.reference import build_reference, unroll
from vllm_eagle_plugin.targets.target import read_target

from ..cases import SUBSET

CHANGES = {
    "eagle3": [f"head.draft_vocab_size={SUBSET}", "head.layer_ids=[1,3,5]"],
    "projection": ["head.draft_vocab_size=0"],
}
RECIPES = ("eagle1", "eagle3", "feature", "projection")


def built(recipe, world, precision="fp32"):
    """Teacher and conditioned head of a recipe."""
    target = read_target(str(world.target.folder))
    recipe = load_recipe(recipe, [*CHANGES.get(recipe, []), f"precision={precision}", "held_out=8"])
    corpus = read_corpus([world.data], identify(target), recipe.held_out)
    teacher, objective = build(recipe, target, corpus, torch.device("cpu"))
    return teacher, objective.head


def logits(head, ids, hidden):
    return torch.stack(
        [step.logits for step in unroll(head, ids, hidden, 3, text=torch.nn.functional.pad(ids, (0, 3)))]
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", [*RECIPES, "medusa"])
def test_the_exported_head_is_the_conditioned_one(recipe, precision, worlds):
    """Powers of two: not one bit differs, in the precision of training as in that of serving."""
    teacher, head = built(recipe, worlds(), precision)
    plain = MedusaHead(head.config) if recipe == "medusa" else build_reference(head.config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    trained = head.state_dict()
    plain.load_state_dict(unconditioned(head, trained))
    plain.attach_target(teacher.embedding, teacher.lm_head)
    ids = torch.arange(40).remainder(24).view(2, 20)
    hidden = teacher(ids[:, :-1]).hidden
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours, exported = logits(head, ids, hidden), logits(plain, ids, hidden)
    assert torch.equal(ours, exported)
    divided = [name for name in trained if name not in plain.state_dict()]
    assert len(divided) == (head.config.num_heads if recipe == "medusa" else 1)
    assert not torch.equal(trained[divided[0]], torch.ones_like(trained[divided[0]])), "or nothing is shown"


def test_inputs_are_of_one_size(world):
    """Channels three orders of magnitude apart: the first matrix reads them all near 1."""
    teacher, head = built("feature", world)
    fresh = build_reference(head.config)
    fresh.attach_target(teacher.embedding * torch.logspace(-1.5, 1.5, 256), teacher.lm_head)
    ids = torch.arange(2000).remainder(24).view(50, 40)
    read = []
    fresh.body.input_projection.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].flatten(0, 1)))
    list(unroll(fresh, ids, teacher(ids[:, :-1]).hidden, 1))
    condition(fresh, teacher, MicroBatch.of(ids, torch.ones_like(ids, dtype=torch.bool)))
    fresh.body.input_projection.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].flatten(0, 1)))
    list(unroll(fresh, ids, teacher(ids[:, :-1]).hidden, 1))
    before, after = (x.square().mean(0).sqrt() for x in (read[0], read[-1]))
    assert float(before.max() / before.min()) > 500
    assert 0.5 < float(after.min()) < float(after.max()) < 2


def test_a_sample_that_says_nothing_changes_nothing(world):
    """Prompts so long that no answer is left, and channels that are never on: no infinities."""
    teacher, head = built("feature", world)
    fresh = build_reference(head.config)
    fresh.attach_target(teacher.embedding, teacher.lm_head)
    ids = torch.arange(24)[None]
    condition(fresh, teacher, MicroBatch.of(ids, torch.zeros_like(ids, dtype=torch.bool)))
    assert set(fresh.state_dict()) == {name for name in head.state_dict() if not name.endswith("input_scale")}
    fresh.attach_target(torch.zeros_like(teacher.embedding), teacher.lm_head)
    condition(fresh, teacher, MicroBatch.of(ids, torch.ones_like(ids, dtype=torch.bool)))
    scale = fresh.body.input_projection.input_scale
    assert bool((scale > 0).all() & scale.isfinite().all())


@pytest.mark.parametrize("recipe", RECIPES)
def test_trained_weights_are_what_is_written(recipe, worlds, tmp_path):
    """From the weights a run kept as its best to the producer's files, read back as any head is."""
    world = worlds(SUBSET if recipe == "eagle3" else None)
    world.train(recipe, tmp_path / "head", ["epochs=1", *CHANGES.get(recipe, [])])
    (best,) = (tmp_path / "head" / "run").glob("best-*")
    teacher, head = built(recipe, world)
    head.load_state_dict(load_file(best))
    done = convert(tmp_path / "head", str(world.target.folder), tmp_path / "served")
    read = done.reading.reference(read_target(str(world.target.folder)))
    ids = torch.tensor([world.target.walk(3, 20)])
    hidden = teacher(ids[:, :-1]).hidden
    with torch.no_grad():
        ours, theirs = logits(head, ids, hidden), logits(read, ids, hidden)
    assert torch.allclose(ours, theirs, atol=0.03 * float(ours.abs().max())), "weights are rounded to 8 bits"
