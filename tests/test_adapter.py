"""LoRA adapters: merged into their head on request, refused otherwise, and never left out without a word."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion.options import Options

from vllm_eagle_plugin.errors import HeadError

from .known_answer.target import WIDTH
from .plain_heads import INNER, MAKERS

RANK, ALPHA = 4, 10.0
#: Modules of a plain EAGLE-3 head, and what they read and write.
MODULES = {
    "midlayer.self_attn.q_proj": (2 * WIDTH, WIDTH),
    "midlayer.self_attn.o_proj": (WIDTH, WIDTH),
    "midlayer.mlp.down_proj": (INNER, WIDTH),
}


def adapter(
    folder: Path, modules: dict[str, tuple[int, int]], prefix: str = "base_model.model.model.", suffix: str = "",
    ranks: dict[str, int] | None = None, file: str = "safetensors", **config: Any,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    parts, tensors = {}, {}
    for name, (inside, outside) in modules.items():
        rank = (ranks or {}).get(name, RANK)
        parts[name] = torch.randn(rank, inside) * 0.1, torch.randn(outside, rank) * 0.1
        for part, tensor in zip("AB", parts[name], strict=True):
            tensors[f"{prefix}{name}.lora_{part}{suffix}.weight"] = tensor
    if file == "safetensors":
        save_file(tensors, folder / "adapter_model.safetensors")
    else:
        torch.save(tensors, folder / f"adapter_model.{file}")
    described = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, **config}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return parts


@pytest.fixture
def head(tmp_path) -> Path:
    return MAKERS["safeailab-eagle3"]().save(tmp_path / "head")


@pytest.fixture
def target(targets) -> str:
    return str(targets().folder)


def refusal(head: Path, target: str, out: Path, told: str | None = None) -> str:
    with pytest.raises(HeadError) as caught:
        convert(head, target, out, Options(adapter=told))
    assert not out.exists()
    return str(caught.value)


def assert_merged(head: Path, out: Path, parts: dict[str, tuple[Tensor, Tensor]], scales: dict[str, float]) -> None:
    before, after = load_file(head / "model.safetensors"), load_file(out / "model.safetensors")
    for name, (a, b) in parts.items():
        ours = after[name.replace("midlayer", "layers.0") + ".weight"]
        torch.testing.assert_close(ours, before[f"{name}.weight"] + scales[name] * (b @ a), rtol=1e-5, atol=1e-5)
    same = {n.replace("midlayer", "layers.0") for n in before} - {
        n.replace("midlayer", "layers.0") + ".weight" for n in parts
    }
    kept = {n.replace("midlayer", "layers.0"): t for n, t in before.items()}
    assert all(torch.equal(after[n], kept[n]) for n in same & set(after) - {"d2t"})


PLAIN = {
    "as PEFT saves it": {},
    "names of an adapter": {"suffix": ".default"},
    "names without the model": {"prefix": "base_model.model."},
    "a pickle": {"file": "bin"},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_is_merged_on_request(kind, head, target, tmp_path):
    parts = adapter(tmp_path / "lora", MODULES, **PLAIN[kind])
    done = convert(head, target, tmp_path / "out", Options(adapter=str(tmp_path / "lora")))
    assert_merged(head, tmp_path / "out", parts, dict.fromkeys(parts, ALPHA / RANK))
    provenance = json.loads((tmp_path / "out" / "config.json").read_text())["eagle_provenance"]
    assert {Path(f).stem for f in provenance["files"]} >= {"adapter_config", "adapter_model"}
    assert any("merged into 3 weights" in note for note in done.reading.notes)


def test_scales_are_pefts(head, target, tmp_path):
    """Rank-stabilised, with a rank and an alpha of their own for some modules."""
    q, o, down = MODULES
    more: dict[str, Any] = {"use_rslora": True, "rank_pattern": {"down_proj": 9}, "alpha_pattern": {"o_proj": 3.0}}
    parts = adapter(tmp_path / "lora", MODULES, ranks={down: 9}, **more)
    convert(head, target, tmp_path / "out", Options(adapter=str(tmp_path / "lora")))
    assert_merged(head, tmp_path / "out", parts, {q: ALPHA / 2, o: 3.0 / 2, down: ALPHA / 3})
    assert math.isclose(ALPHA / math.sqrt(9), ALPHA / 3)


def test_is_proven_with_the_adapter(head, target, tmp_path):
    """The same bytes come out each time, and verification compares them with what the adapter makes of the head."""
    adapter(tmp_path / "lora", MODULES)
    from vllm_eagle_plugin.conversion.verify import verify

    told = Options(adapter=str(tmp_path / "lora"))
    convert(head, target, tmp_path / "out", told)
    assert verify(head, target, tmp_path / "out", told, plain=True).passed
    assert not verify(head, target, tmp_path / "out", plain=True).passed


ALONE = {"its folder": ".", "its file": "adapter_model.safetensors"}


@pytest.mark.parametrize("what", ALONE)
def test_alone_it_is_no_head_and_the_advice_works(what, head, target, tmp_path, monkeypatch):
    adapter(tmp_path / "lora", MODULES, base_model_name_or_path=str(head))
    told = refusal((tmp_path / "lora" / ALONE[what]).resolve(), target, tmp_path / "out")
    assert "is a LoRA adapter: it changes a draft head, and holds none" in told
    command = shlex.split(told[told.index("vllm-eagle convert") :].rstrip("."))
    assert command[2] == str(head)
    convert(command[2], target, tmp_path / "out", Options(adapter=command[command.index("--adapter") + 1]))


def test_beside_its_head_it_is_merged_or_left_out_as_told(head, target, tmp_path):
    parts = adapter(head, MODULES)
    told = refusal(head, target, tmp_path / "out")
    assert "a LoRA adapter for this head lies beside it" in told
    assert f"--adapter {head}" in told
    convert(head, target, tmp_path / "merged", Options(adapter=str(head)))
    assert_merged(head, tmp_path / "merged", parts, dict.fromkeys(parts, ALPHA / RANK))
    done = convert(head, target, tmp_path / "without", Options(adapter="none"))
    assert any("left out" in note for note in done.reading.notes)
    assert_merged(head, tmp_path / "without", {}, {})


def test_a_draft_of_automodel_with_its_adapter(head, target, tmp_path):
    """Its draft's names stand under `model.`, its adapter's under PEFT's prefix and that."""
    tensors = {
        f"model.{n.replace('midlayer', 'layers.0')}": t for n, t in load_file(head / "model.safetensors").items()
    }
    for name in ("lm_head.weight", "d2t", "t2d"):
        tensors[name] = tensors.pop(f"model.{name}")
    save_file(tensors, head / "model.safetensors")
    described = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**described, "architectures": ["LlamaEagle3DraftModel"]}))
    adapter(head, {n.replace("midlayer", "layers.0"): s for n, s in MODULES.items()})
    assert "for this head lies beside it" in refusal(head, target, tmp_path / "out")
    done = convert(head, target, tmp_path / "out", Options(adapter=str(head)))
    assert done.detection.reader.name == "automodel-eagle3"


@pytest.mark.parametrize("where", ["model.layers.17.self_attn.q_proj", "model.midlayer.self_attn.q_proj"])
def test_an_adapter_of_the_target_is_called_so(where, head, target, tmp_path):
    """ModelOpt's co-training leaves the target's adapter beside the head: of other layers, or of other shapes."""
    adapter(head, {where: (WIDTH, WIDTH)}, prefix="base_model.model.")
    told = refusal(head, target, tmp_path / "out")
    assert "a LoRA adapter of another model lies beside the head" in told
    assert "Merge the adapter into the target" in told
    convert(head, target, tmp_path / "out", Options(adapter="none"))
    assert "does not have" in refusal(head, target, tmp_path / "merged", told=str(head))


ODD = {
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa_niter_4"},
    "transposed": {"fan_in_fan_out": True},
    "no alpha": {"lora_alpha": None},
    "another kind": {"peft_type": "IA3"},
    "a pattern of more than names": {"alpha_pattern": {"layers.*q_proj": 4}},
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_plain_lora_is_not_merged_as_if(kind, head, target, tmp_path):
    adapter(tmp_path / "lora", MODULES, **ODD[kind])
    assert "cannot be merged here" in refusal(head, target, tmp_path / "out", told=str(tmp_path / "lora"))


@pytest.mark.parametrize("damage", ["half", "extra"])
def test_a_damaged_adapter_is_refused(damage, head, target, tmp_path):
    adapter(tmp_path / "lora", MODULES)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    if damage == "half":
        del tensors[min(tensors)]
    else:
        tensors["base_model.model.model.midlayer.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(WIDTH)
    save_file(tensors, file)
    assert "cannot be merged here" in refusal(head, target, tmp_path / "out", told=str(tmp_path / "lora"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_unmerged_weights_in_the_head_are_refused(wrapped, head, target, tmp_path):
    """A state dict of PEFT's model, with base layers by their own names, or beside the head's."""
    tensors = load_file(head / "model.safetensors")
    if wrapped:
        tensors = {f"base_model.model.{n.replace('.weight', '.base_layer.weight')}": t for n, t in tensors.items()}
    for part in "AB":
        tensors[f"midlayer.mlp.down_proj.lora_{part}.default.weight"] = torch.randn(4, 4)
    save_file(tensors, head / "model.safetensors")
    told = refusal(head, target, tmp_path / "out")
    assert "unmerged LoRA weights" in told
    assert "merge_and_unload" in told


def test_none_is_for_adapters_that_are_there(head, target, tmp_path):
    assert "has no LoRA adapter beside it" in refusal(head, target, tmp_path / "out", told="none")


def test_inspect_says_what_convert_would(head, target):
    adapter(head, MODULES)
    assert "a LoRA adapter for this head" in str(inspect_head(head, target=target).refusal)
