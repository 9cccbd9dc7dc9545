"""Bad heads, targets and options on the command line: one clear error, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .known_answer.target import VOCAB, WIDTH
from .plain_heads import MAKERS, Head, surgery
from .shell import Shell


@pytest.fixture
def shell(tmp_path, targets, monkeypatch, capfd) -> Shell:
    return Shell(tmp_path, targets(), monkeypatch, capfd)


def test_every_producer_converts(shell):
    """The undamaged heads are good, so that each refusal below is for its damage."""
    for producer in MAKERS:
        head = shell.head(producer)
        code, out, err = shell.convert(head.save(shell.folder / producer), *head.options, "--force", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["producer"] == producer


def cosine_zero(shell: Shell) -> torch.Tensor:
    embedding = shell.target.embedding
    noise = torch.randn_like(embedding)
    return noise - embedding * (noise * embedding).sum(-1, True) / (embedding * embedding).sum(-1, True)


MISSING = {
    "safeailab-eagle": "layers.0.self_attn.v_proj.weight",
    "safeailab-eagle3": "midlayer.hidden_norm.weight",
    "feature": "output_projection.bias",
    "surgery": "mlp.2.bias",
    "projection": "projection_bias",
}


DAMAGES = ("missing", "extra", "nan", "zeros", "int8", "scalar", "empty", "other-target")
#: The plain matrices of projection heads may hold whole numbers, as JSON does.
DAMAGED = [(d, p) for p in MAKERS for d in DAMAGES if (d, p) != ("int8", "projection")]


@pytest.mark.parametrize(("damage", "producer"), DAMAGED, ids=[f"{p}-{d}" for d, p in DAMAGED])
def test_damaged_tensors(damage, producer, shell):
    head = shell.head(producer)
    name = MISSING[producer]
    matrix = next(n for n, t in head.tensors.items() if t.dim() == 2 and n != "embeddings.weight")
    if damage == "missing":
        del head.tensors[name]
        what = (name, "is missing", "Export the head again")
    elif damage == "extra":
        head.tensors["surprise.weight"] = torch.ones(3)
        what = ("surprise.weight [3]", "nothing here accounts for")
    elif damage == "nan":
        head.tensors[name].view(-1)[1] = float("nan")
        what = ("NaN",)
    elif damage == "zeros":
        head.tensors[matrix].zero_()
        what = ("all zeros",)
    elif damage == "int8":
        head.tensors[name] = head.tensors[name].to(torch.int8)
        what = ("int8", "floating-point")
    elif damage == "scalar":
        head.tensors[matrix] = torch.tensor(1.0)
        what = (f"{matrix} is []",)
    elif damage == "empty":
        head.tensors[name] = torch.zeros(0)
        what = (name, "[0]")
    else:  # every size that follows from the target's doubled or halved
        head.tensors = {n: t.repeat(*[2] * t.dim()) if n not in ("d2t", "t2d") else t for n, t in head.tensors.items()}
        what = ("was expected", "another target?")
    if damage == "scalar" and producer == "safeailab-eagle":
        head.options += ["--producer", producer]  # by such an fc it is not recognised
    shell.refuse(what, head.save(shell.folder / "head"), *head.options)


def edit(**changes: Any) -> Callable[[Head, Shell], None]:
    """Change the config; None takes a key out."""

    def change(head: Head, _: Shell) -> None:
        head.config = {k: v for k, v in {**(head.config or {}), **changes}.items() if v is not None}

    return change


def put(**tensors: Callable[[Shell], torch.Tensor]) -> Callable[[Head, Shell], None]:
    return lambda head, shell: head.tensors.update({n.replace("__", "."): make(shell) for n, make in tensors.items()})


def add(*options: str) -> Callable[[Head, Shell], None]:
    return lambda head, _: head.options.extend(options)


def forget_options(head: Head, _: Shell) -> None:
    head.options = []


def narrow(head: Head, _: Shell) -> None:
    head.tensors["input_projection.weight"] = torch.randn(WIDTH, WIDTH + 48)


def narrow_with(*sizes: int) -> Callable[[Head, Shell], None]:
    def change(head: Head, shell: Shell) -> None:
        narrow(head, shell)
        torch.save(torch.randn(sizes), shell.folder / "table.pt")
        head.options += ["--embedding", str(shell.folder / "table.pt")]

    return change


D2T = torch.arange(12)
REFUSED: dict[str, tuple[str, Callable[[Head, Shell], Any], tuple[str, ...]]] = {
    "no-heads": ("safeailab-eagle", edit(num_attention_heads=None), ("num_attention_heads",)),
    "heads-text": ("safeailab-eagle", edit(num_attention_heads="8"), ("num_attention_heads", "'8'")),
    "heads-do-not-divide": ("safeailab-eagle", edit(num_attention_heads=7), ("256", "7 heads")),
    "rope-text": ("safeailab-eagle", edit(rope_theta="big"), ("rope_theta", "'big'", "number")),
    "rope-negative": ("safeailab-eagle", edit(rope_theta=-1.0), ("rope_theta", "-1.0")),
    "rope-scaling-list": ("safeailab-eagle", edit(rope_scaling=[1]), ("rope_scaling", "[1]")),
    "head-dim-text": ("safeailab-eagle", edit(head_dim="32"), ("head_dim", "'32'")),
    "eps-text": ("safeailab-eagle", edit(rms_norm_eps="x"), ("rms_norm_eps", "'x'")),
    "positions-text": ("safeailab-eagle", edit(max_position_embeddings="x"), ("max_position_embeddings", "'x'")),
    "random-embedding": (
        "safeailab-eagle", put(embed_tokens__weight=cosine_zero), ("embed_tokens.weight", "nothing in common", "cosine")
    ),
    "random-embedding-surgery": ("surgery", put(embeddings__weight=cosine_zero), ("embeddings.weight", "cosine")),
    "pairing-eagle": ("safeailab-eagle", add("--token-pairing", "same"), ("--token-pairing", "safeailab-eagle")),
    "embedding-eagle": ("safeailab-eagle", add("--embedding", "x.pt"), ("--embedding", "safeailab-eagle")),
    "rope-feature": ("feature", add("--rope-theta", "500"), ("--rope-theta", "feature")),
    "aux-text": ("safeailab-eagle3", edit(eagle_aux_hidden_state_layer_ids="1,3,5"), ("eagle_aux", "'1,3,5'")),
    "aux-texts": ("safeailab-eagle3", edit(eagle_aux_hidden_state_layer_ids=["1", "3"]), ("eagle_aux", "['1', '3']")),
    "aux-unordered": ("safeailab-eagle3", edit(eagle_aux_hidden_state_layer_ids=[5, 3, 1]), ("[5, 3, 1]", "ascending")),
    "aux-two": ("safeailab-eagle3", edit(eagle_aux_hidden_state_layer_ids=[1, 3]), ("[1, 3]",)),
    "aux-beyond": ("safeailab-eagle3", edit(eagle_aux_hidden_state_layer_ids=[1, 3, 9]), ("[1, 3, 9]", "6 layers")),
    "d2t-contradicts-t2d": ("safeailab-eagle3", put(d2t=lambda _: D2T * 0), ("t2d marks 12", "d2t maps to 12")),
    "d2t-float": ("safeailab-eagle3", put(d2t=lambda _: D2T.float()), ("d2t", "float32", "ntegers")),
    "d2t-outside": (
        "safeailab-eagle3", lambda head, _: (head.tensors.update(d2t=D2T * 9), head.tensors.pop("t2d")), ("0 to 110", "24")
    ),
    "d2t-not-unique": (
        "safeailab-eagle3", lambda head, _: (head.tensors.update(d2t=-D2T), head.tensors.pop("t2d")), ("d2t", "1 ids")
    ),
    "lm-head-too-tall": (
        "safeailab-eagle3", put(lm_head__weight=lambda _: torch.randn(VOCAB + 1, WIDTH)), ("lm_head.weight", "25", "24")
    ),
    "no-pairing": ("feature", forget_options, ("which token", "--token-pairing next or --token-pairing same")),
    "pairing-same-projection": ("projection", add("--token-pairing", "same"), ("predicts the token", "token t+2")),
    "pairing-same-surgery": ("surgery", add("--token-pairing", "same"), ("--token-pairing same", "Leave the option")),
    "surgery-hidden-size": ("surgery", edit(hidden_size=64), ("hidden_size 64", "256")),
    "narrow-embedding": ("feature", narrow, ("width 48", "256 wide", "--embedding FILE")),
    "embedding-shape": ("feature", narrow_with(VOCAB, 47), ("table.pt is [24, 47]", "[24, 48] was expected")),
    "embedding-vector": ("feature", narrow_with(48), ("table.pt holds 0 matrices",)),
    "embedding-absent": ("feature", add("--embedding", "/nowhere/table.pt"), ("/nowhere/table.pt",)),
    "two-producers": ("projection", lambda h, s: h.tensors.update(surgery().tensors), ("looks like", "--producer")),
    "no-producer": ("feature", lambda h, s: h.tensors.pop("output_projection.weight"), ("no known producer",)),
    "wrong-producer": ("feature", add("--producer", "surgery"), ("accounts for", "input_projection.weight")),
    "config-list": ("safeailab-eagle", lambda head, _: setattr(head, "config", [1]), ("config.json holds a list",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_heads(case, shell):
    producer, damage, what = REFUSED[case]
    head = shell.head(producer)
    damage(head, shell)
    shell.refuse(what, head.save(shell.folder / "head"), *head.options)


def stripped(shell: Shell, **files: str | bytes | None) -> Path:
    """A copy of the target with files replaced or, with None, left out."""
    copy = shell.folder / "target"
    shutil.copytree(shell.target.folder, copy)
    for name, content in files.items():
        path = copy / name.replace("__", ".")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return copy


INDEX = "model__safetensors__index__json"
TARGETS: dict[str, tuple[dict[str, Any] | None, tuple[str, ...]]] = {
    "absent": (None, ("neither a folder nor a model",)),
    "no-config": ({"config__json": None}, ("config.json",)),
    "config-garbage": ({"config__json": "{"}, ("config.json",)),
    "config-list": ({"config__json": "[1]"}, ("config.json",)),
    "config-code": ({"config__json": '{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}'}, ("config.json",)),
    "hidden-text": ({"config__json": '{"model_type": "llama", "hidden_size": "wide"}'}, ("hidden_size",)),
    "no-safetensors": ({"model__safetensors": None}, ("no safetensors", "save_pretrained")),
    "cut-safetensors": ({"model__safetensors": b"\x08"}, ("model.safetensors cannot be read",)),
    "index-outside": ({INDEX: '{"weight_map": {"a": "../../etc/x.safetensors"}}'}, ("outside its folder",)),
    "index-garbage": ({INDEX: "{"}, ("index.json is damaged", "weight_map")),
    "index-list": ({INDEX: "[1]"}, ("index.json is damaged",)),
    "index-absent-file": ({INDEX: '{"weight_map": {"a": "b.safetensors"}}'}, ("names b.safetensors, which is not there",)),
}  # fmt: skip


@pytest.mark.parametrize("case", TARGETS)
def test_bad_targets(case, shell):
    files, what = TARGETS[case]
    target = shell.folder / "none" if files is None else stripped(shell, **files)
    head = shell.head("safeailab-eagle").save(shell.folder / "head")
    shell.refuse(what, head, target=target)


USAGE = {
    "pairing": (("--token-pairing", "before"), ("--token-pairing before", "next, same")),
    "dtype": (("--dtype", "int4"), ("--dtype int4", "float32, bfloat16, float16")),
    "producer": (("--producer", "openai"), ("--producer openai", "safeailab-eagle, hass-layernorm")),
    "rope-zero": (("--rope-theta", "0"), ("--rope-theta is 0.0", "positive")),
    "rope-nan": (("--rope-theta", "nan"), ("--rope-theta is nan", "positive")),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage(case, shell):
    options, what = USAGE[case]
    shell.refuse(what, shell.head("safeailab-eagle").save(shell.folder / "head"), *options, code=2)


def test_options_that_do_not_exist(shell):
    for arguments in (
        ["convert"],
        ["convert", "head", "--tarjet", "x"],
        ["convert", "h", "--rope-theta", "x"],
        ["nope"],
    ):
        code, out, err = shell.run(*arguments)
        assert (code, out) == (2, "")
        assert "Usage:" in err
        assert "Traceback" not in err
