"""Bad heads and settings in vLLM: one clear error, from its front end wherever no weights are needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_eagle_plugin.conversion import convert

from vllm_eagle_plugin.configs import EagleConfig
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.fingerprint import sample_embedding
from vllm_eagle_plugin.servers import serve

from .cases import CASES, SUBSET
from .engine import engine
from .front_end import assert_refused, front_end
from .known_answer import known_answer_head, save_head
from .known_answer.target import LAYERS, VOCAB, WIDTH
from .plain_heads import MAKERS

#: A head of each family, and SafeAILab's EAGLE converted to the layout of stock vLLM.
FAMILIES = ("feature", "projection-narrow", "eagle-fc-bias", "eagle3-reduced")
STOCK = "stock-eagle"


@pytest.fixture(scope="module")
def saved(target_for, tmp_path_factory) -> Callable[[str], Path]:
    """`saved(name)`: an undamaged head, built once."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            if name == STOCK:
                source = MAKERS["safeailab-eagle"]().save(folder / "source")
                assert not convert(source, str(target_for(EagleConfig()).folder), folder / "head").layout.needs_plugin
                built[name] = folder / "head"
            else:
                config = CASES[name]()
                built[name] = save_head(known_answer_head(config, target_for(config), 1), folder)
        return built[name]

    return get


@pytest.fixture
def head(saved, head_folder) -> Callable[[str], Path]:
    """`head(name)`: a copy of a good head, to be damaged."""
    return lambda name: Path(shutil.copytree(saved(name), head_folder))


def target_of(targets: Callable[..., Any], name: str) -> Path:
    return targets("llama", SUBSET if "reduced" in name else None).folder


@pytest.mark.parametrize("name", [*FAMILIES, STOCK])
def test_good_heads_pass(name, head, targets):
    """So that each refusal below is for its damage; `method` is read from the head."""
    found = front_end(target_of(targets, name), head(name))
    assert found.speculative_config.method == ("eagle3" if "eagle3" in name else "eagle")


@pytest.mark.parametrize("name", [*FAMILIES, STOCK])
@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "cut", "no-weights", "stored-twice"])
def test_damaged_files(damage, name, head, targets):
    folder = head(name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    victim = min(n for n, t in tensors.items() if t.dim() == 2)
    size = list(tensors[victim].shape)
    if damage == "missing":
        del tensors[victim]
        what = (f"{victim} {size} is missing",)
    elif damage == "extra":
        tensors["surprise.bias"] = torch.ones(3)
        what = ("surprise.bias [3] is unexpected",)
    elif damage == "misshapen":
        tensors[victim] = tensors[victim].T[:-1].contiguous()
        what = (f"{victim} is {[size[1] - 1, size[0]]} but must be {size}",)
    elif damage == "cut":
        what = (f"{file} cannot be read", "Copy or download it again")
    elif damage == "no-weights":
        what = ("has no safetensors file",)
    else:
        save_file({victim: tensors[victim]}, folder / "stale.safetensors")
        what = (f"tensor {victim} is in stale.safetensors", "Each tensor must be stored once")
    save_file(tensors, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    if damage == "no-weights":
        file.unlink()
    assert_refused(what, target_of(targets, name), folder)


AUX = "eagle_aux_hidden_state_layer_ids"
#: Family, changes of config.json (None: the key is taken out), and what the error says.
SETTINGS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "unknown-key": ("feature", {"use_rotary": True}, ("['use_rotary']",)),
    "unknown-keys": ("eagle3-reduced", {"zoom": 1, "bias": True}, ("['bias', 'zoom']",)),
    "no-vocab": ("feature", {"vocab_size": 0}, ("vocab_size is 0", "positive")),
    "hidden-negative": ("eagle-fc-bias", {"hidden_size": -1}, ("hidden_size is -1", "positive")),
    "hidden-text": ("eagle-fc-bias", {"hidden_size": "256"}, ("hidden_size is '256'", "type int")),
    "blocks-text": ("feature", {"num_blocks": "two"}, ("num_blocks is 'two'", "type int")),
    "scale-text": ("feature", {"embed_scale": "x"}, ("embed_scale is 'x'", "type float")),
    "provenance-text": ("feature", {"eagle_provenance": "mine"}, ("eagle_provenance", "'mine'")),
    "draft-vocab-zero": ("eagle3-reduced", {"draft_vocab_size": 0}, ("draft_vocab_size is 0",)),
    "draft-vocab-large": ("eagle3-reduced", {"draft_vocab_size": 99}, ("draft_vocab_size is 99", "24")),
    "reduced-shared-lm-head": ("eagle3-reduced", {"own_lm_head": False}, ("draft_vocab_size is 16", "own_lm_head")),
    "bias-without-lm-head": ("feature", {"lm_head_bias": True}, ("lm_head_bias", "own_lm_head")),
    "embed-scale": ("feature", {"embed_scale": -1.0}, ("embed_scale is -1.0",)),
    "logit-scale": ("eagle-fc-bias", {"logit_scale": 0.0}, ("logit_scale is 0.0",)),
    "softcap-nan": ("feature", {"logit_softcap": float("nan")}, ("logit_softcap is nan",)),
    "reads-nothing": ("feature", {"use_embedding": False, "use_hidden": False}, ("both false",)),
    "own-unread-embedding": ("projection-narrow", {"own_embedding": True}, ("own_embedding", "use_embedding")),
    "embedding-width": ("feature", {"embedding_size": 48}, ("embedding_size is 48", "256")),
    "narrow-shared-lm-head": ("projection-narrow", {"own_lm_head": False}, ("64 wide", "reads 256")),
    "blocks-negative": ("feature", {"num_blocks": -1}, ("num_blocks is -1",)),
    "block-activation": ("feature", {"block_activation": "swish"}, ("block_activation is 'swish'", "silu, relu")),
    "input-activation": ("feature", {"input_activation": "tanh"}, ("input_activation is 'tanh'",)),
    "activation-of-nothing": (
        "projection-narrow", {"input_projection": None, "own_lm_head": True}, ("input_activation", "input_projection")
    ),
    "pairing": ("feature", {"token_pairing": "previous"}, ("token_pairing is 'previous'", "next, same")),
    "no-layers": ("eagle-fc-bias", {"num_hidden_layers": 0}, ("num_hidden_layers is 0",)),
    "no-intermediate": ("eagle-fc-bias", {"intermediate_size": 0}, ("intermediate_size is 0",)),
    "kv-heads": ("eagle-fc-bias", {"num_key_value_heads": 3}, ("8 attention heads", "3 kv heads")),
    "hidden-act": ("eagle-fc-bias", {"hidden_act": "softly"}, ("hidden_act is 'softly'",)),
    "feedback": ("eagle-fc-bias", {"feedback": "both"}, ("feedback is 'both'",)),
    "feedback-without-norm": ("eagle-fc-bias", {"feedback": "post_norm"}, ("post_norm", "output_norm")),
    "no-fc-width": ("eagle3-reduced", {"use_aux_hidden_state": False, "target_hidden_size": 64}, ("is 64", "256")),
    "no-fc-bias": ("eagle3-reduced", {"use_aux_hidden_state": False, "fc_bias": True}, ("fc_bias is true", "no fc")),
    "aux-missing": ("eagle3-reduced", {AUX: None}, (f"has no {AUX}",)),
    "aux-empty": ("eagle3-reduced", {AUX: []}, (f"has no {AUX}",)),
    "aux-unordered": ("eagle3-reduced", {AUX: [5, 3, 1]}, ("[5, 3, 1]", "ascending")),
    "aux-duplicate": ("eagle3-reduced", {AUX: [1, 3, 3]}, ("[1, 3, 3]", "once each")),
    "aux-negative": ("eagle3-reduced", {AUX: [-1, 3, 5]}, ("[-1, 3, 5]",)),
    "aux-count": ("eagle3-reduced", {AUX: [1, 3]}, ("num_aux_hidden_states is 3 but 2",)),
    "aux-texts": ("eagle3-reduced", {AUX: ["1", "3", "5"]}, (f"{AUX} is ['1', '3', '5']", "list[int]")),
    "flag-number": ("eagle-fc-bias", {"fc_bias": 1}, ("fc_bias is 1", "type bool")),
    "rope-list": ("eagle-fc-bias", {"rope_parameters": [1]}, ("rope_parameters is [1]", "dict")),
    "aux-beyond": ("eagle3-reduced", {AUX: [1, 3, LAYERS + 1]}, ("reads layer 7", "only 6 layers")),
    "wrong-flag": ("eagle-fc-bias", {"fc_bias": False}, ("fc.bias [256] is unexpected",)),
    "stock-other-target": (STOCK, {"hidden_size": 2 * WIDTH}, (f"width {2 * WIDTH}", f"has {WIDTH}")),
    "stock-other-vocab": (STOCK, {"vocab_size": VOCAB + 1}, ("knows 25 tokens", "has 24")),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_config(case, head, targets):
    name, changes, what = SETTINGS[case]
    folder = head(name)
    change_config(folder, **changes)
    assert_refused(what, target_of(targets, name), folder)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if changes.get(key, ...) is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", ["eagle", "eagle3", "medusa", "ngram", "draft_model", "mlp_speculator", "mtp"])
@pytest.mark.parametrize("name", ["eagle-fc-bias", "eagle3-reduced", STOCK])
def test_wrong_method(name, method, head, targets):
    folder = head(name)
    right = "eagle3" if "eagle3" in name else "eagle"
    if method != right:
        what = (f"method {method!r}", str(folder), f"needs method {right!r}", "Leave `method` out")
        assert_refused(what, target_of(targets, name), folder, method=method)


def test_settings_no_chain_head_runs_with(head, targets):
    folder = head("projection-narrow")
    what = ("num_speculative_tokens is 2", "64 wide", "Set num_speculative_tokens to 1")
    assert_refused(what, target_of(targets, ""), folder, 2)
    assert_refused(("parallel_drafting is set", "Leave it out"), target_of(targets, ""), folder, parallel_drafting=True)


@pytest.mark.parametrize("name", ["feature", "eagle-fc-bias"])
def test_head_of_another_shape_of_target(name, target_for, targets, tmp_path):
    """Heads whole in themselves, for another width, vocabulary or depth."""
    from vllm_eagle_plugin.reference import build_reference

    for number, (changes, made_for, what) in enumerate(
        [
            (
                {"hidden_size": 64, "input_projection": 64, "head_dim": 8},
                None,
                ("width 64", "has 256", "another target?"),
            ),
            ({"vocab_size": 32}, {"name": "acme/other"}, ("32 tokens", "has 24", "made for 'acme/other'")),
            ({}, {"name": "acme/deep", "num_hidden_layers": 32}, ("32 layers", "has 6", "made for 'acme/deep'")),
        ]
    ):
        config = CASES[name]()
        fields = {**config.to_dict(), **{k: v for k, v in changes.items() if hasattr(config, k)}}
        made = build_reference(type(config).from_dict(fields))
        folder = save_head(made, tmp_path / str(number), {"target": made_for} if made_for else None)
        assert_refused(what, target_of(targets, name), folder)


def set_value(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    return change


LOADING: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], tuple[str, ...]]] = {
    "nan": ("feature", set_value("body.output_projection.weight", float("nan")), ("body.output_projection.weight", "NaN")),
    "infinite": ("eagle-fc-bias", set_value("fc.bias", float("inf")), ("tensor fc.bias", "infinite")),
    "d2t-outside": ("eagle3-reduced", set_value("d2t", 500), ("d2t maps", "503", "0 to 23", "vllm-eagle convert")),
    "d2t-not-unique": (
        "eagle3-reduced", lambda t: t.update(d2t=-torch.arange(SUBSET)), ("d2t maps two draft tokens", "absolute ids")
    ),
    "d2t-float": ("eagle3-reduced", lambda t: t.update(d2t=t["d2t"].float()), ("d2t is of type torch.float32",)),
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("case", LOADING)
def test_bad_weights_are_refused_while_loading(case, head, targets):
    name, damage, what = LOADING[case]
    folder = head(name)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    refused_while_loading(target_of(targets, name), folder, what)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["feature", STOCK])
def test_head_of_another_target_of_the_same_shapes(name, head, targets):
    folder = head(name)
    other = {"name": "acme/twin", "hidden_size": WIDTH, "embedding": sample_embedding(torch.randn(VOCAB, WIDTH))}
    provenance = json.loads((folder / "config.json").read_text()).get("eagle_provenance") or {}
    change_config(folder, eagle_provenance={**provenance, "target": other})
    refused_while_loading(target_of(targets, name), folder, ("made for the target 'acme/twin'", "embedding of token"))


def refused_while_loading(target: Path, head: Path, what: tuple[str, ...]) -> None:
    with pytest.raises(HeadError) as caught, engine(target, head, 1):
        pass
    assert caught.value.expected
    for part in what:
        assert part in str(caught.value)


@pytest.mark.engine
def test_vllm_serve_refuses_before_traffic(head, targets, tmp_path):
    folder = head("eagle-fc-bias")
    change_config(folder, use_rotary=True)
    log = tmp_path / "log"
    settings = json.dumps({"model": str(folder), "num_speculative_tokens": 3})
    arguments = ("--skip-tokenizer-init", "--speculative-config", settings)
    with pytest.raises(HeadError, match=r"stopped with exit code 1.*"), serve(target_of(targets, ""), log, *arguments):
        pytest.fail("it answers")
    assert "config.json of this eagle_transformer head has unknown keys ['use_rotary']" in log.read_text()
    assert "Loading safetensors" not in log.read_text()
