"""Every producer's layout is recognised, converts, and serves with exactly known-answer acceptance.

One engine for each distinct output: variants must come out equal, bit by bit, to one that is served.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.readers import READERS

from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.reference import draft_chain

from .cases import draft_length
from .engine import engine
from .known_answer.heads import target_states
from .producers import FIXTURES, PRODUCERS, SERVED
from .producers.making import make
from .producers.table import FACTS, PAGE, page
from .test_known_answer import assert_exact


def test_there_is_a_fixture_for_every_reader():
    assert set(PRODUCERS) == set(READERS)
    assert {fixture.reader for fixture in FIXTURES.values()} == set(READERS)


@pytest.fixture(scope="module")
def made(target_for, tmp_path_factory):
    """`made(fixture)`: written and converted once, to be looked at only."""
    known = {}

    def get(name):
        if name not in known:
            torch.manual_seed(0)
            known[name] = make(name, target_for, tmp_path_factory.mktemp("produced"))
        return known[name]

    return get


@pytest.mark.parametrize("name", FIXTURES)
def test_is_recognised_and_accounted_for(name, made):
    reading = made(name).done.reading
    assert made(name).done.detection.reader.name == FIXTURES[name].reader
    assert set(made(name).tensors) <= set(reading.used.values()) | {"d2t"}  # which side files can be the source of
    assert all(reading.dropped.values())


@pytest.mark.engine
@pytest.mark.parametrize("name", SERVED)
def test_serves_exactly(name, made):
    found = made(name)
    k = draft_length(found.head.config)
    method = {"method": found.done.reading.config.method}  # otherwise vLLM guesses it from the folder's name
    with engine(found.target.folder, found.done.output, k, speculative=method) as running:
        assert_exact(running, found.target, k)


@pytest.mark.parametrize("name", [name for name, fixture in FIXTURES.items() if fixture.same_as])
def test_comes_out_equal_to_one_that_is_served(name, made):
    assert FIXTURES[FIXTURES[name].same_as].same_as is None
    ours, served = made(name), made(FIXTURES[name].same_as)
    assert ours.config == served.config
    assert set(ours.tensors) == set(served.tensors)
    assert all(torch.equal(ours.tensors[n], tensor) for n, tensor in served.tensors.items())


@pytest.mark.parametrize("name", SERVED)
def test_weights_are_the_same_bits(name, made):
    expected = {n: t for n, t in made(name).head.state_dict().items() if n != "embed_tokens.weight" or "70B" in name}
    written = made(name).tensors
    if name == "automodel-eagle3":  # written in the order of frequency
        order = (written["d2t"] + torch.arange(len(written["d2t"]))).argsort()
        assert torch.equal(written["lm_head.weight"][order], expected.pop("lm_head.weight"))
        del expected["d2t"]
    assert all(torch.equal(written[n], tensor) for n, tensor in expected.items())


def test_the_documentation_is_what_the_registry_says(made):
    assert set(FACTS) == set(READERS)
    assert PAGE.read_text() == page(made), "python -m tests.producers.table writes it anew"


def test_hot_tokens_of_sglang_cut_the_targets_lm_head(target_for, tmp_path):
    """`--speculative-token-map`: drafts are the best of the listed tokens, most frequent first."""
    made = make("sglang-eagle", target_for, tmp_path)
    hot = torch.tensor([5, 3, 20, 11, 2, 17])
    torch.save(hot.tolist(), made.trained / "hot_token_ids.pt")
    done = convert(made.trained, str(made.target.folder), tmp_path / "hot")
    assert done.reading.config.draft_vocab_size == len(hot)
    reference = done.reading.reference(done.target)
    tokens = torch.arange(24).repeat(1, 2)
    hidden = target_states(made.head.config, made.target, tokens[:, :-1])
    ours = draft_chain(reference, tokens, hidden, 1)[0, :, 0]
    with torch.no_grad():
        out, _ = made.head(tokens[:, 1:], hidden, made.head.new_memory(torch.arange(47)[None]))
        listed = made.head.logits(out)[0][:, hot]
    assert torch.equal(ours, hot[listed.argmax(-1)])


@pytest.mark.parametrize("theta", [None, 500000.0])
def test_the_rope_base_angelslim_trains_with(theta, target_for, tmp_path):
    """Its config says a million, which only the user can make true."""
    made = make("angelslim", target_for, tmp_path, rope_theta=theta)
    assert made.config["rope_theta"] == made.config["rope_parameters"]["rope_theta"] == (theta or 10000.0)


def test_angelslim_reads_its_config_for_multimodal_rope(target_for, tmp_path):
    made = make("angelslim", target_for, tmp_path)
    _edit(made.trained, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]})
    done = convert(made.trained, str(made.target.folder), tmp_path / "again")
    assert done.layout.config["rope_theta"] == 1e6


def test_layer_ids_that_can_be_counted_either_way_are_not_guessed(target_for, tmp_path):
    made = make("modelopt", target_for, tmp_path)
    described = json.loads((made.trained / "config.json").read_text())
    described["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [6, 1, 3]
    _edit(made.trained, eagle_config=described["eagle_config"])
    with pytest.raises(HeadError, match="can count the streams between layers"):
        convert(made.trained, str(made.target.folder), tmp_path / "again")
    for told, ids in (("output", [2, 4, 7]), ("boundary", [1, 3, 6])):
        done = convert(
            made.trained, str(made.target.folder), tmp_path / told, Options(aux_ids_convention=told), dry_run=True
        )
        assert done.layout.config["eagle_aux_hidden_state_layer_ids"] == ids


def test_rows_that_torchspec_took_at_offsets_are_refused(target_for, tmp_path):
    made = make("vllm-eagle3: TorchSpec", target_for, tmp_path)
    state = load_file(made.trained / "model.safetensors")
    whole = torch.randn(made.head.config.vocab_size, made.head.config.hidden_size)
    save_file({**state, "lm_head.weight": whole[state["d2t"]]}, made.trained / "model.safetensors")
    with pytest.raises(HeadError, match="at the offsets of d2t"):
        convert(made.trained, str(made.target.folder), tmp_path / "again")


def test_a_modelopt_head_that_never_sees_a_token_is_refused(target_for, tmp_path):
    """Its Hugging Face plugin without aux hidden states, since those heads lost their fc."""
    made = make("modelopt: EAGLE-1", target_for, tmp_path)
    state = load_file(made.trained / "model.safetensors")
    del state["fc.weight"]
    save_file(state, made.trained / "model.safetensors")
    with pytest.raises(HeadError, match="never lets such a head see the token"):
        convert(made.trained, str(made.target.folder), tmp_path / "again")


@pytest.mark.parametrize(("kind", "window"), [("sliding_attention", 16), ("full_attention", None)])
def test_a_window_that_speculators_trained_within_is_written(kind, window, target_for, tmp_path):
    """The config of a target copied into a head's names a window too, which no layer has then."""
    made = make("speculators-eagle3", target_for, tmp_path)
    layers = json.loads((made.trained / "config.json").read_text())["transformer_layer_config"]
    _edit(made.trained, transformer_layer_config={**layers, "layer_types": [kind], "sliding_window": 16})
    done = convert(made.trained, str(made.target.folder), tmp_path / "again")
    assert done.reading.config.sliding_window == window
    assert done.layout.config.get("sliding_window") == window
    assert done.layout.config.get("layer_types") == (["sliding_attention"] if window else None)


def test_norm_output_of_nobodys_in_particular_is_not_guessed(target_for, tmp_path):
    """SpecForge and EAGLE-3.1 use these names alike, and feed back different streams."""
    made = make("vllm-eagle3: EAGLE-3.1, unmarked", target_for, tmp_path)
    with pytest.raises(HeadError, match=r"differ in feedback: (pre_norm or post_norm|post_norm or pre_norm)"):
        convert(made.trained, str(made.target.folder), tmp_path / "again")
    told = Options(producer="specforge")
    done = convert(made.trained, str(made.target.folder), tmp_path / "again", told, dry_run=True)
    assert done.reading.config.feedback == "pre_norm"


@pytest.mark.parametrize(
    "name", ["vllm-eagle3: EAGLE-3.1", "automodel-eagle3: EAGLE-3.1", "speculators-eagle3: EAGLE-3.1"]
)
def test_norms_that_a_config_speaks_of_are_missed(name, target_for, tmp_path):
    made = make(name, target_for, tmp_path)
    file = next(made.trained.rglob("model.safetensors"))
    save_file({n: t for n, t in load_file(file).items() if "fc_norm" not in n}, file)
    with pytest.raises(HeadError, match=r"fc_norm\.0\.weight is missing, and config.json says fc_norm is true"):
        convert(made.trained, str(made.target.folder), tmp_path / "again")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"num_hidden_layers": 2}, "each of them reads the embedding"),
        ({"target_layer_ids": [0, 2, 3, 4, 7]}, "has the target's last layer"),
        ({"target_layer_ids": [0, 2, 3, 4]}, "names 4 layers"),
    ],
)
def test_what_vllm_cannot_do_with_deepspecs_heads(changed, what, target_for, tmp_path):
    made = make("deepspec", target_for, tmp_path)
    _edit(made.trained, **changed)
    with pytest.raises(HeadError, match=what):
        convert(made.trained, str(made.target.folder), tmp_path / "again")


def test_rope_scaling_that_specforges_peagle_does_not_train_with(target_for, tmp_path):
    made = make("specforge-peagle", target_for, tmp_path)
    assert made.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert any("trains without" in note for note in made.done.reading.notes)


def _edit(folder, **changed):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **changed}))
