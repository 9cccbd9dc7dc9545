"""What conversion writes; `test_producers.py` has every producer's layout."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_eagle_plugin.conversion import convert, inspect_head

from vllm_eagle_plugin.configs import HEAD_CONFIGS

from .producers.making import make


@pytest.fixture
def made(target_for, tmp_path):
    """`made(fixture)`: a known-answer head in a producer's layout, converted."""

    def build(name, **options):
        found = make(name, target_for, tmp_path, **options)
        return found.target, found.head, found.theirs, found.done

    return build


@pytest.mark.parametrize("name", ["feature", "surgery", "projection", "safeailab-eagle", "safeailab-eagle3"])
def test_weights_are_the_same_bits(name, made):
    _, head, _, done = made(name)
    written = load_file(done.output / "model.safetensors")
    expected = {n: t for n, t in head.state_dict().items() if n != "embed_tokens.weight"}
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_feature_heads_mean_what_their_own_forward_computes(made):
    target, head, theirs, _ = made("feature")
    tokens = torch.arange(24)
    hidden, embed = target.hidden(tokens[:, None])[:, 0], target.embedding[target.successor]
    with torch.no_grad():
        ours, _ = head.body(embed, hidden)
        torch.testing.assert_close(ours, theirs(hidden, embed), atol=1e-4, rtol=1e-4)


def test_surgery_heads_mean_what_their_own_forward_computes(made):
    _, head, theirs, _ = made("surgery")
    tokens = torch.arange(24)
    with torch.no_grad():
        ours, _ = head.body(head.embed(tokens), torch.zeros(24, head.config.hidden_size))
        torch.testing.assert_close(head.logits(ours), theirs(tokens), atol=1e-4, rtol=1e-4)


def test_stock_layout_where_a_stock_class_computes_the_head(made, tmp_path):
    *_, done = made("safeailab-eagle3")
    config = json.loads((done.output / "config.json").read_text())
    assert not done.layout.needs_plugin
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_aux_hidden_states"] == 3
    assert not {"bias", "attention_bias", "eagle_config"} & set(config)


def test_our_layout_where_stock_would_drop_a_bias(made):
    *_, done = made("safeailab-eagle")
    assert done.layout.needs_plugin
    assert done.layout.config["model_type"] in HEAD_CONFIGS
    assert "fc.bias" in done.layout.why


def test_same_input_same_bytes(made, tmp_path):
    target, _, _, done = made("surgery")
    again = convert(tmp_path / "trained", str(target.folder), tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again.output / name).read_bytes() == (done.output / name).read_bytes()


def test_provenance_names_source_target_and_evidence(made):
    target, _, _, done = made("safeailab-eagle3")
    kept = json.loads((done.output / "config.json").read_text())["eagle_provenance"]
    assert kept["producer"] == "safeailab-eagle3"
    assert set(kept["files"]) == {"pytorch_model.bin", "config.json"}
    assert kept["target"]["name"] == str(target.folder)
    assert kept["evidence"]


def test_copies_of_the_target_are_left_out(made):
    *_, done = made("surgery")
    assert set(done.reading.dropped) == {"embeddings.weight", "lm_head.weight"}


def test_absolute_d2t_is_turned_into_offsets(made, tmp_path):
    target, head, *_ = made("vllm-eagle3")
    offsets, file = head.d2t, tmp_path / "trained" / "model.safetensors"
    save_file({**load_file(file), "d2t": offsets + torch.arange(len(offsets))}, file)
    done = convert(tmp_path / "trained", str(target.folder), tmp_path / "again")
    assert torch.equal(done.reading.tensors["d2t"].load(), offsets)
    assert any("absolute" in note for note in done.reading.notes)


def test_inspect_says_what_it_is(made, tmp_path):
    made("projection")
    found = inspect_head(tmp_path / "trained").as_json()
    assert found["producer"] == "projection"
    assert found["tensors"]["projection_weights"]["shape"] == [256, 256]


def test_the_serve_command_can_be_pasted(made):
    *_, done = made("projection")
    assert done.serve_command.startswith("vllm serve ")
    speculative = json.loads(done.serve_command.split("--speculative-config ")[1].strip("'"))
    assert speculative == {"method": "eagle", "model": str(done.output), "num_speculative_tokens": 3}
