"""Each producer's layout converts, means what the producer's own forward computes, and serves exactly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.readers import READERS

from vllm_eagle_plugin.configs import HEAD_CONFIGS

from .cases import CASES
from .engine import engine
from .known_answer import known_answer_head
from .producers import PRODUCERS
from .test_known_answer import assert_exact


@pytest.fixture
def made(target_for, tmp_path):
    """`made(producer)`: a known-answer head in that producer's layout, converted."""

    def make(producer, **options):
        case, write, told = PRODUCERS[producer]
        config = CASES[case]()
        target = target_for(config)
        head = known_answer_head(config, target)
        folder = tmp_path / "trained"
        folder.mkdir()
        theirs = write(head, folder)
        done = convert(folder, str(target.folder), tmp_path / "out", Options(**{**told, **options}))
        return target, head, theirs, done

    return make


def test_there_is_a_fixture_for_every_reader():
    assert set(PRODUCERS) == set(READERS)


@pytest.mark.engine
@pytest.mark.parametrize("producer", PRODUCERS)
def test_converts_and_serves_exactly(producer, made):
    target, _, _, done = made(producer)
    assert done.detection.reader.name == producer
    with engine(target.folder, done.output) as running:
        assert_exact(running, target, 4)


@pytest.mark.parametrize("producer", PRODUCERS)
def test_weights_are_the_same_bits(producer, made):
    _, head, _, done = made(producer)
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
    assert set(kept["files"]) == {"model.safetensors", "config.json"}
    assert kept["target"]["name"] == str(target.folder)
    assert kept["evidence"]


def test_copies_of_the_target_are_left_out(made):
    *_, done = made("surgery")
    assert set(done.reading.dropped) == {"embeddings.weight", "lm_head.weight"}


def test_absolute_d2t_is_turned_into_offsets(target_for, tmp_path):
    case, write, _ = PRODUCERS["safeailab-eagle3"]
    config = CASES[case]()
    target = target_for(config)
    write(known_answer_head(config, target), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    offsets = tensors["d2t"].clone()
    from safetensors.torch import save_file

    save_file({**tensors, "d2t": offsets + torch.arange(len(offsets))}, file)
    done = convert(tmp_path, str(target.folder), tmp_path / "out")
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
