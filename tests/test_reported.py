"""Heads that people reported: what their files say beside what they mean, and what is made of them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion.options import Options

from vllm_eagle_plugin.errors import HeadError

from .producers.making import make


@pytest.fixture
def altered(target_for, tmp_path):
    """`altered(fixture, tensors, layers, **top)`: a layout with changed tensors and keys, and its target's folder."""

    def build(name, change=None, layers=None, **top):
        made = make(name, target_for, tmp_path)
        file = next(made.trained.rglob("*.safetensors"))
        if change is not None:
            save_file({n: t.contiguous() for n, t in change(load_file(file)).items()}, file)
        config = next(made.trained.rglob("config.json"))
        described = json.loads(config.read_text())
        if layers:
            described["transformer_layer_config"] |= layers
        config.write_text(json.dumps({**described, **top}))
        return made, made.trained, str(made.target.folder), tmp_path / "again"

    return build


#: What gpt-oss and Gemma configs leave in a head's that was made from them.
COPIED = {
    "layer_types": ["sliding_attention", "full_attention"] * 4, "sliding_window": 4, "swiglu_limit": 7.0,
    "num_local_experts": 4, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
}  # fmt: skip


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu", "relu2"])
@pytest.mark.parametrize("name", ["automodel-eagle3", "speculators-eagle3"])
def test_an_activation_is_served_as_trained(name, activation, altered):
    inside = name.startswith("speculators")
    says = {"hidden_act": activation}
    _, head, target, out = altered(name, layers=says if inside else None, **({} if inside else says))
    done = convert(head, target, out)
    assert done.reading.config.hidden_act == activation
    assert f"the activation {activation}" in done.layout.why
    assert done.layout.needs_plugin
    found = inspect_head(head, target=target).stock
    assert found["outcome"] == "refuses"
    if inside:
        assert f"Unsupported activation: {activation}" in found["text"]


def test_a_window_of_the_target_is_not_the_heads(altered):
    """gpt-oss: YaRN without truncation is the head's, the window is not."""
    yarn = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "truncate": False, "beta_fast": 32.0,
            "beta_slow": 1.0, "original_max_position_embeddings": 64}  # fmt: skip
    _, head, target, out = altered("automodel-eagle3", **COPIED, rope_parameters=yarn, rope_theta=None)
    done = convert(head, target, out)
    assert done.reading.config.sliding_window is None
    assert not any("attends within" in note for note in done.reading.notes)
    assert any("does not read" in note and "layer_types" in note for note in done.reading.notes)
    rope = done.reading.config.rope_parameters
    assert (rope["truncate"], rope["factor"], rope["rope_theta"]) == (False, 32.0, 150000.0)


@pytest.mark.parametrize("name", ["speculators-eagle3", "speculators-eagle3: Qwen3", "speculators-peagle"])
def test_a_window_trained_within_is_kept(name, altered):
    _, head, target, out = altered(name, layers={"layer_types": ["sliding_attention"], "sliding_window": 16})
    done = convert(head, target, out)
    assert done.reading.config.sliding_window == 16
    if not done.layout.needs_plugin:
        assert done.layout.config["layer_types"] == ["sliding_attention"]
        assert done.layout.config["sliding_window"] == 16


def without_verifier(tensors):
    return {n: t for n, t in tensors.items() if not n.startswith("verifier_")}


def test_rope_that_the_trainer_rotated_whole(altered):
    """speculators before its rotary correction: the verifier's factor and sections, and whole heads rotated."""
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]}
    layers = {"rope_parameters": rope, "rope_theta": None}
    _, head, target, out = altered("speculators-eagle3", without_verifier, layers)
    done = convert(head, target, out)
    assert done.reading.config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
    assert done.reading.config.rope_parameters["mrope_section"] == [8, 4, 4]
    assert any("rotate whole heads" in note for note in done.reading.notes)
    found = inspect_head(head, target=target).stock
    assert found["outcome"] == "ruins"
    assert "0.25 of each attention head rotated instead of 1" in found["text"]


@pytest.mark.parametrize("rows", [23, 20, 12])
def test_a_vocabulary_without_its_padding(rows, altered):
    """The refusal names the way out, and the way out works."""
    cut = {"draft_vocab_size": rows, "vocab_size": rows}

    def short(tensors):
        kept = {n: t for n, t in tensors.items() if n not in ("d2t", "t2d")}
        return kept | {"lm_head.weight": torch.randn(rows, 256)}

    _, head, target, out = altered("specforge: whole vocabulary", short, **cut)
    with pytest.raises(HeadError, match=f"has {rows} rows for the target's 24 tokens") as refused:
        convert(head, target, out)
    assert "--d2t identity" in refused.value.action
    done = convert(head, target, out, Options(d2t="identity"))
    assert done.reading.config.draft_vocab_size == rows
    assert not done.reading.tensors["d2t"].load().any()


def test_a_draft_vocabulary_of_the_first_tokens_is_noted(altered):
    def first(tensors):
        rows = len(tensors["d2t"])
        return tensors | {"d2t": torch.zeros_like(tensors["d2t"]), "t2d": torch.arange(len(tensors["t2d"])) < rows}

    _, head, target, out = altered("specforge", first)
    done = convert(head, target, out)
    assert any("drafts the first 16 of 24 tokens only" in note for note in done.reading.notes)


def tied(tensors):
    """transformers leaves an lm_head that is the embedding out of the file."""
    kept = {n: t for n, t in tensors.items() if n not in ("lm_head.weight", "d2t", "t2d")}
    own = kept["model.embed_tokens.weight"]
    return kept | {"model.embed_tokens.weight": own + 0.2 * torch.randn_like(own)}


def test_a_tied_lm_head_is_the_heads_own_embedding(altered):
    _, head, target, out = altered("automodel-eagle3", tied, tie_word_embeddings=True, draft_vocab_size=24)
    (head / "eagle_meta.pt").unlink()
    done = convert(head, target, out)
    assert any("the lm_head is the head's own embed_tokens" in note for note in done.reading.notes)
    written = load_file(out / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["embed_tokens.weight"])
    shutil.rmtree(out)


def test_a_missing_lm_head_that_is_not_tied_is_still_missed(altered):
    _, head, target, out = altered("automodel-eagle3", tied, tie_word_embeddings=False, draft_vocab_size=24)
    (head / "eagle_meta.pt").unlink()
    with pytest.raises(HeadError, match=r"lm_head\.weight is missing"):
        convert(head, target, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_rotated_after_the_head_was_trained(dtype, altered):
    """QuaRot: rows of the two embeddings have the same products, and other directions."""
    turn = torch.linalg.qr(torch.randn(256, 256))[0]
    made, head, target, out = altered("specforge: defaults")
    file = head / "model.safetensors"
    turned = (made.target.embedding @ turn).to(dtype)
    save_file({**load_file(file), "embed_tokens.weight": turned.contiguous()}, file)
    with pytest.raises(HeadError, match="the target's embedding in another basis") as refused:
        convert(head, target, out)
    assert "--drop" not in str(refused.value)


def test_a_random_embedding_is_not_taken_for_a_rotated_one(altered):
    def random(tensors):
        return tensors | {"embed_tokens.weight": torch.randn_like(tensors["embed_tokens.weight"])}

    _, head, target, out = altered("specforge: defaults", random)
    with pytest.raises(HeadError, match="nothing in common"):
        convert(head, target, out)
