"""Each recipe, from conversations to acceptance in a real engine."""

from __future__ import annotations

import json

import pytest
import torch
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.training.recipe import shipped_recipes

from ..cases import SUBSET
from ..engine import engine
from ..shell import Shell

pytestmark = pytest.mark.engine
#: What each recipe needs changed for a language of 24 tokens and a target of 6 layers.
CHANGES = {
    "eagle3": [f"head.draft_vocab_size={SUBSET}", "head.layer_ids=[1,3,5]"],
    "projection": ["head.draft_vocab_size=0"],
}
K = 4


def served(world, head, folder, **options):
    """Convert the head and let it draft for greedy answers to the held-out prompts' like."""
    done = convert(head, str(world.target.folder), folder)
    return drafted(world, folder, done.reading.config.max_draft_tokens or K, **options)


def drafted(world, folder, k, **options):
    """What vLLM counts of a head as it serves it; the answers are the target's own."""
    prompts = [world.target.walk(int(world.target.successor[i]), 4 + i % 3) for i in range(12)]
    with engine(world.target.folder, folder, k, **options) as running:
        outputs = running.generate(prompts, max_tokens=24)
        counted = running.counters()
    assert all(o == world.target.walk(p[-1], 25)[1:] for p, o in zip(prompts, outputs, strict=True))
    return counted


def test_every_shipped_recipe_is_tested():
    recipes = {"feature", "feature-regression", "surgery", "projection", "eagle1", "eagle3", "medusa"}
    assert set(shipped_recipes()) == recipes


@pytest.mark.parametrize("recipe", ["feature", "feature-regression", "surgery", "projection", "eagle1", "eagle3"])
def test_a_learnable_language_is_learned_and_served(recipe, worlds, tmp_path):
    world = worlds(SUBSET if recipe == "eagle3" else None)
    changes = ["epochs=3", "evaluate_every=9", *CHANGES.get(recipe, [])]
    done = world.train(recipe, tmp_path / "head", changes)
    assert done.finished
    assert done.steps == done.progress.step == 27
    assert done.progress.best_acceptance > K + 0.9
    card = (tmp_path / "head" / "README.md").read_text()
    assert f"{done.progress.best_acceptance:.2f}" in card
    counted = served(world, tmp_path / "head", tmp_path / "served")
    assert counted.acceptance_length > K + 0.9


def test_a_narrow_projection_drafts_one_token(world, tmp_path):
    changes = ["epochs=5", "head.draft_vocab_size=0", "head.width=64", "unroll.steps=1"]
    done = world.train("projection", tmp_path / "head", changes)
    assert len(done.progress.best["agreement"]) == 1
    counted = served(world, tmp_path / "head", tmp_path / "served")
    assert counted.acceptance_length > 1.9


def test_medusa_heads_are_served_as_they_are(world, tmp_path):
    """vLLM's own class and layout; fewer drafts than heads too."""
    changes = ["epochs=6", "evaluate_every=18", "optimiser.learning_rate=5e-3"]
    done = world.train("medusa", tmp_path / "medusa", [*changes, f"unroll.steps={K}"])
    assert len(done.progress.best["agreement"]) == K
    assert done.progress.best_acceptance > K + 0.9
    card = (tmp_path / "medusa" / "README.md").read_text()
    assert '"method": "medusa"' in card
    for k in (K, 2):
        counted = drafted(world, tmp_path / "medusa", k, speculative={"method": "medusa"})
        assert counted.acceptance_length > k + 0.9


def test_surgery_heads_with_their_tables(world, tmp_path):
    """As its producer writes it: `convert` finds the copies equal to the target's and drops them."""
    world.train("surgery", tmp_path / "head", ["epochs=1"], tables=True)
    assert "embeddings.weight" in torch.load(tmp_path / "head" / "eagle_model.pt")
    done = convert(tmp_path / "head", str(world.target.folder), tmp_path / "served")
    assert not done.reading.config.own_embedding
    assert not done.reading.config.own_lm_head


def test_a_head_is_cut_to_the_tokens_that_the_target_says(worlds, tmp_path, monkeypatch, capfd):
    """FR-Spec (arXiv 2502.14856) for a head that has no lm_head of its own: the whole language is in the map."""
    world = worlds(SUBSET)
    world.train("surgery", tmp_path / "head", ["epochs=3", *CHANGES.get("surgery", [])])
    shell, models = Shell(tmp_path, world.target, monkeypatch, capfd), ["--target", world.target.folder]
    code, out, _ = shell.run("train", "tokens", *models, "--data", world.data, "-n", SUBSET, "-o", tmp_path / "t.json")
    assert code == 0
    assert "100.00%" in out
    code, *_ = shell.run("train", "tokens", *models, "--data", world.data, "-n", 9999, "-o", tmp_path / "no.json")
    assert code == 2
    assert not (tmp_path / "no.json").exists()
    options = Options(token_map=tmp_path / "t.json")
    done = convert(tmp_path / "head", str(world.target.folder), tmp_path / "served", options)
    assert done.reading.config.draft_vocab_size == SUBSET
    assert drafted(world, tmp_path / "served", K).acceptance_length > K + 0.9


def test_offline_agreement_predicts_acceptance(world, tmp_path):
    """A head that learned half: what `measure` says of held-out answers is what the engine then counts."""
    done = world.train("eagle1", tmp_path / "head", ["epochs=1", "optimiser.learning_rate=1e-4", "held_out=24"])
    offline = done.progress.best
    assert 1.3 < offline["acceptance_length"] < K + 0.5, "neither hopeless nor perfect, or nothing is shown"
    convert(tmp_path / "head", str(world.target.folder), tmp_path / "served")
    rows = [json.loads(line) for line in (world.data / "shard0000.jsonl").read_text().splitlines()][-24:]
    drafts = accepted = 0
    with engine(world.target.folder, tmp_path / "served", K) as running:
        for row in rows:  # one by one, each as long as its answer and the drafts behind it that are not measured
            running.generate([row["prompt"]], max_tokens=len(row["answer"]))
        counted = running.counters()
        drafts, accepted = counted.drafts, counted.accepted
    assert 1 + accepted / drafts == pytest.approx(offline["acceptance_length"], rel=0.05)
