"""Going on from a trained head: nothing of it is lost, one step changes it, and `convert` takes what comes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.training.adapt import adapt, gain
from vllm_eagle_plugin.training.agreement import Agreement
from vllm_eagle_plugin.training.build import build
from vllm_eagle_plugin.training.corpus import read_corpus
from vllm_eagle_plugin.training.data import DataWriter
from vllm_eagle_plugin.training.recipe import load_recipe
from vllm_eagle_plugin.training.teacher import identify
from vllm_eagle_plugin.training.trainer import Options as RunOptions
from vllm_eagle_plugin.training.trainer import train
from vllm_eagle_plugin.training.warm_start import export_adapted, family_of, fitted, flags, read_back, read_start

from vllm_eagle_plugin.targets.target import read_target

from ..producers import FIXTURES
from ..producers.making import make
from .conftest import SMALL
from .language import write_language

#: Layouts of six producers and more, with biases, norms, token maps and several layers among them.
LAYOUTS = (
    "safeailab-eagle", "safeailab-eagle3", "hass-layernorm", "speculators-eagle3", "specforge", "automodel-eagle",
    "angelslim", "deepspec", "baldeagle", "feature", "surgery", "projection",
)  # fmt: skip
THREE = ["head.layer_ids=[1,3,5]", "head.draft_vocab_size=24"]
ONE_STEP = [*SMALL, "batch.tokens=256", "evaluate_every=1", "epochs=1"]


@pytest.fixture
def made(target_for, tmp_path):
    return lambda name: make(name, target_for, tmp_path / name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_head_survives_going_on_from_it(name, made, tmp_path):
    found = made(name)
    target = read_target(str(found.target.folder))
    start = read_start(str(found.trained), target, Options(**FIXTURES[name].options))
    data = write_language(found.target, tmp_path / "data", shards=1)
    recipe = fitted(load_recipe(start.family, ONE_STEP), start.head.config)
    corpus = read_corpus([data], identify(target), recipe.held_out)
    teacher, objective = build(recipe, target, corpus, torch.device("cpu"), start)

    # What is trained computes what the head computed, and is written and read back as the very head.
    ids = torch.as_tensor(corpus.train[0].ids(32))[None].long()
    states = teacher(ids[:, :-1])
    start.head.attach_target(teacher.embedding, teacher.lm_head)
    for head in (start.head, objective.head):
        head.eval()
    memory = [h.new_memory(torch.arange(ids.shape[1] - 1)[None]) for h in (start.head, objective.head)]
    outs = [
        h(ids[:, 1:], h.fuse(states.hidden), m)[0] for h, m in zip((start.head, objective.head), memory, strict=True)
    ]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-4)
    export_adapted(start.family, objective.head, target, tmp_path / "same")
    again = read_back(tmp_path / "same", target)
    assert again is not None
    assert flags(again.config) == flags(start.head.config)
    for weight, tensor in start.head.state_dict().items():
        torch.testing.assert_close(again.state_dict()[weight], tensor, rtol=1e-2, atol=1e-2)

    # A step changes the weights, and convert takes the result.
    done = train(recipe, str(found.target.folder), data, tmp_path / "run", RunOptions(draft_tokens=2), start)
    log = [json.loads(line) for line in (tmp_path / "run" / "run" / "log.jsonl").read_text().splitlines()]
    assert next(row["step"] for row in log if row["event"] == "held_out") == 0, "measured before it is trained"
    assert done.progress.step > 0
    trained = read_start(str(tmp_path / "run"), target).head
    assert flags(trained.config) == flags(start.head.config)
    result = convert(str(tmp_path / "run"), str(found.target.folder), tmp_path / "served", verify=False)
    assert result.written


def test_a_worse_head_is_never_written(world, tmp_path):
    """With a rate that ruins it, what is written is the head it started from."""
    target = read_target(str(world.target.folder))
    first = world.train("eagle3", tmp_path / "first", [*THREE, "epochs=8", "evaluate_every=20"])
    start = read_start(str(tmp_path / "first"), target)
    changes = [*SMALL, "optimiser.learning_rate=30", "optimiser.muon=false", "evaluate_every=3", "patience=1"]
    recipe = fitted(load_recipe("eagle3", changes), start.head.config)
    done = train(recipe, str(world.target.folder), world.data, tmp_path / "second", RunOptions(draft_tokens=4), start)
    assert first.progress.best_acceptance > 1.5
    assert done.finished
    assert done.progress.step < done.steps, "it went on though nothing got better"
    assert done.progress.best_step == 0
    kept = read_start(str(tmp_path / "second"), target).head.state_dict()
    for name, tensor in start.head.state_dict().items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-2, atol=1e-2)


def test_adapting_from_end_to_end(world, tmp_path, monkeypatch):
    """A half-trained head, prompts of the user's, and the target's answers; gains, and goes on where it stopped."""
    world.train("eagle3", tmp_path / "head", [*THREE, "epochs=1"])

    def write(self, tokens):
        if not list(self.folder.glob("shard*")):
            (self.folder / "manifest.json").unlink()
            self.folder.rmdir()
            write_language(world.target, self.folder, shards=1, seed=len(str(self.folder)))
        yield from ()
        yield object()

    monkeypatch.setattr(DataWriter, "__init__", lambda self, target, folder, settings: _open(self, folder))
    monkeypatch.setattr(DataWriter, "write", write)
    monkeypatch.setattr("vllm_eagle_plugin.training.adapt.data_progress", lambda shards, tokens: shards)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    changes = [*SMALL, "epochs=6", "evaluate_every=10", "optimiser.learning_rate=2e-3"]
    found = adapt(
        str(tmp_path / "head"), str(world.target.folder), tmp_path / "out", prompts=prompts, changes=changes,
        options=RunOptions(draft_tokens=4),
    )  # fmt: skip
    assert found.finished
    assert found.special.paid, found
    assert found.general is not None
    assert found.general.after > found.general.before
    assert json.loads((tmp_path / "out" / "adapted.json").read_text())["paid"] is True


def _open(writer, folder):
    writer.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").touch()


def test_the_interval_of_a_gain():
    """Wide where conversations differ, and around nothing where nothing changed."""
    chance = np.random.default_rng(1)
    drafts, accepted = chance.integers(20, 40, 50).tolist(), chance.integers(5, 20, 50).tolist()

    def agreement(more: int) -> Agreement:
        raised = [a + more for a in accepted]
        return Agreement([], 1 + sum(raised) / sum(drafts), [], drafts, raised)

    same, better = gain(agreement(0), agreement(0)), gain(agreement(0), agreement(6))
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert not same.paid
    assert better.low < better.difference < better.high
    assert better.low > 0.1


def test_families(made):
    for name, family in (("safeailab-eagle", "eagle1"), ("feature", "feature"), ("surgery", "surgery")):
        found = made(name)
        start = read_start(str(found.trained), read_target(str(found.target.folder)), Options(**FIXTURES[name].options))
        assert family_of(start.head.config) == start.family == family
