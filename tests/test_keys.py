"""Every key of a head's config is accounted for, and none that changes what is computed is overlooked."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion import decoder as reading_layers
from vllm_eagle_plugin.conversion.keys import KEYS, Role, key_of

from vllm_eagle_plugin.errors import HeadError

from . import in_process
from .key_draws import DRAWN, LAYERS, Draws
from .producers.making import make

#: 1,000 draws of this seed were run with `python -m tests.key_draws`; these are its first.
SEED, COUNT = 26, 100


@pytest.fixture(scope="module")
def draws(tmp_path_factory, target_for):
    with in_process.one_rank():
        yield Draws(tmp_path_factory.mktemp("drawn"), target_for)


def test_another_value_of_any_key_is_computed_or_refused(draws):
    rng, outcomes = random.Random(SEED), Counter()
    for _ in range(COUNT):
        drawn = draws.draw(rng)
        assert drawn.outcome != "wrong", drawn
        outcomes[drawn.outcome] += 1
    assert outcomes["computed"] >= COUNT // 10
    assert outcomes["refused"] >= COUNT // 10


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("automodel-eagle3", "hidden_act", "gelu_pytorch_tanh"),
        ("speculators-eagle3", "hidden_act", "relu2"),
        ("safeailab-eagle", "hidden_act", "gelu"),
        ("speculators-eagle3", "layer_types,sliding_window", (["sliding_attention"], 4)),
        ("speculators-eagle3: Qwen3", "layer_types,sliding_window", (["sliding_attention"], 3)),
        ("specforge", "rope_scaling", LAYERS["rope_scaling"][3]),
        ("automodel-eagle3", "rope_scaling", LAYERS["rope_scaling"][4]),
        ("hass-layernorm", "rope_theta", 500000.0),
        ("baldeagle", "rms_norm_eps", 0.1),
    ],
)
def test_what_is_said_is_computed(name, key, value, draws):
    """By the reference, by vLLM's class, and by layers of transformers."""
    assert draws.change(name, key, value).outcome == "computed"


@pytest.mark.parametrize(("name", "outcome"), [("specforge", "wrong"), ("safeailab-eagle3", "refused")])
def test_an_overlooked_key_would_show(name, outcome, draws, monkeypatch):
    """As it was: an activation that the reader does not look at. Where the trainer is unknown, its account notices."""
    draws.layout(name)
    monkeypatch.setattr(reading_layers, "_activation", lambda described, options: "silu")
    assert draws.change(name, "hidden_act", "gelu").outcome == outcome


def test_the_table_and_the_draws_know_each_other():
    """Every drawn key stands in the table, except those drawn because nobody knows them."""
    names = {part for key in LAYERS for part in key.split(",")}
    assert names - set(KEYS) == {"residual_gain_scale", "something_new"}
    assert len(DRAWN) > 50


def test_unknown_keys_that_sound_like_arithmetic_are_not_let_through():
    found = key_of("residual_gain_scale")
    assert found is not None
    assert found.role is Role.ELSEWHERE
    assert key_of("something_new") is None


@pytest.mark.parametrize(
    "name", ["safeailab-eagle3", "specforge", "speculators-eagle3", "vllm-v0", "modelopt", "surgery"]
)
def test_every_key_is_accounted_for(name, target_for, tmp_path):
    made = make(name, target_for, tmp_path)
    found = inspect_head(made.trained, target=str(made.target.folder)).as_json()["config_keys"]
    described = json.loads(next(made.trained.rglob("config.json")).read_text())
    assert {path.split(".")[0] for path in found} == set(described)
    assert all(found.values())
    written = json.loads((made.done.output / "config.json").read_text())
    assert written["eagle_provenance"]["config"] == made.done.as_json()["config"]


def test_a_key_of_another_family_is_refused_unless_the_trainer_is_known(target_for, tmp_path):
    """And what the refusal says to do works."""
    made = make("safeailab-eagle3", target_for, tmp_path)
    _edit(made.trained, residual_multiplier=0.22)
    with pytest.raises(HeadError, match=r"residual_multiplier is 0\.22.*scales what a block adds") as refused:
        convert(made.trained, str(made.target.folder), tmp_path / "again")
    assert "remove it from config.json" in refused.value.action
    made = make("specforge", target_for, tmp_path / "known")
    _edit(made.trained, residual_multiplier=0.22)
    done = convert(made.trained, str(made.target.folder), tmp_path / "known" / "again")
    assert "specforge does not read residual_multiplier: copied from its target" in done.reading.notes


def test_an_unknown_key_is_named(target_for, tmp_path):
    made = make("speculators-eagle3", target_for, tmp_path)
    _edit(made.trained, something_new=3, nothing_new=None)
    done = convert(made.trained, str(made.target.folder), tmp_path / "again")
    assert "config.json has keys that nobody here knows: something_new 3" in done.reading.notes
    assert done.reading.keys["nothing_new"] == "says nothing"


def _edit(folder, **changed):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **changed}))
