"""Quantised heads: written bit by bit where stock vLLM serves them, dense on request, and never half."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.quantised import DEQUANTISE
from vllm_eagle_plugin.conversion.verify import verify

from vllm_eagle_plugin.errors import HeadError

from .plain_heads import MAKERS

GROUP = 32
Parts = dict[str, Tensor]


def fp8(weight: Tensor) -> Parts:
    """ModelOpt: one scale a tensor, one for its inputs."""
    scale = weight.abs().max() / 448
    return {
        "weight": (weight / scale).to(torch.float8_e4m3fn),
        "weight_scale": scale,
        "input_scale": torch.tensor(0.01),
    }


def fp8_channels(weight: Tensor) -> Parts:
    """compressed-tensors: one scale a row."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def fp8_blocks(weight: Tensor) -> Parts:
    """DeepSeek's: one scale for 128 rows and columns, stored under the name of its inverse."""
    rows, columns = (-(-size // 128) for size in weight.shape)
    padded = torch.nn.functional.pad(weight, (0, columns * 128 - weight.shape[1], 0, rows * 128 - weight.shape[0]))
    scale = padded.unflatten(0, (rows, 128)).unflatten(2, (columns, 128)).abs().amax((1, 3)) / 448
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    return {"weight": (weight / spread).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def int8(weight: Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def packed(weight: Tensor) -> Parts:
    """compressed-tensors' W4A16, packed by its own code."""
    grouped = weight.unflatten(1, (-1, GROUP))
    scale = grouped.abs().amax(2) / 7
    ints = (grouped / scale[:, :, None]).round().clamp(-8, 7).flatten(1).to(torch.int8)
    return {"weight_packed": pack_to_int32(ints, 4), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}


def _grouped(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned integers [in, out], zeros and scales [groups, out], of four bits."""
    grouped = weight.T.unflatten(0, (-1, GROUP))
    low, high = grouped.amin(1), grouped.amax(1)
    scale = (high - low) / 15
    zero = (-low / scale).round().clamp(1, 15)
    ints = (grouped / scale[:, None] + zero[:, None]).round().clamp(0, 15).flatten(0, 1)
    return ints.int(), zero.int(), scale


def _words(ints: Tensor) -> Tensor:
    """Eight columns to 32 bits, the first one lowest."""
    found = torch.zeros(ints.shape[0], ints.shape[1] // 8, dtype=torch.int64)
    for i in range(8):
        found |= ints[:, i::8].long() << (4 * i)
    return torch.where(found >= 2**31, found - 2**32, found).int()


def gptq(weight: Tensor) -> Parts:
    ints, zero, scale = _grouped(weight)
    groups = (torch.arange(ints.shape[0]) // GROUP).int()
    return {"qweight": _words(ints.T).T.contiguous(), "qzeros": _words(zero - 1), "scales": scale, "g_idx": groups}


def awq(weight: Tensor) -> Parts:
    ints, zero, scale = _grouped(weight)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    shuffled = [t.unflatten(1, (-1, 8))[:, :, order].flatten(1) for t in (ints, zero)]
    return {"qweight": _words(shuffled[0]), "qzeros": _words(shuffled[1]), "scales": scale}


def compressed(kind: str, bits: int, strategy: str) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


#: How weights are stored, what config.json says of it, and how far values may be from the dense ones (of their largest).
SCHEMES: dict[str, tuple[Callable[[Tensor], Parts], dict[str, Any], float]] = {
    "ModelOpt FP8": (fp8, {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, 0.05),
    "compressed-tensors FP8": (fp8_channels, compressed("float", 8, "channel"), 0.05),
    "FP8 in blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, 0.05),
    "compressed-tensors INT8": (int8, compressed("int", 8, "channel"), 0.01),
    "compressed-tensors W4A16": (packed, compressed("int", 4, "group"), 0.15),
    "GPTQ": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}, 0.15),
    "AWQ": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}, 0.15),
}


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight") or name == "fc.weight"


def quantise(head: Path, scheme: str, spared: tuple[str, ...] = ()) -> tuple[Parts, Parts]:
    """The head with its linear layers stored so; its dense tensors, and what it holds now."""
    pack, said, _ = SCHEMES[scheme]
    dense, tensors = load_file(head / "model.safetensors"), {}
    for name, tensor in dense.items():
        if is_linear(name) and not name.startswith(spared or "-"):
            parts = pack(tensor)
            tensors |= {f"{name.removesuffix('weight')}{part}": t.contiguous() for part, t in parts.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, head / "model.safetensors")
    described = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**described, "quantization_config": said}))
    return dense, tensors


def _ours(name: str) -> str:
    return name.replace("midlayer.", "layers.0.")


@pytest.fixture
def head(tmp_path) -> Path:
    return MAKERS["safeailab-eagle3"]().save(tmp_path / "head")


@pytest.fixture
def target(targets) -> str:
    return str(targets().folder)


def _bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_is_written_bit_by_bit_and_read_as_what_it_stands_for(scheme, head, target, tmp_path):
    dense, stored = quantise(head, scheme)
    done = convert(head, target, tmp_path / "out")
    assert not done.layout.needs_plugin
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {n: _bits(t) for n, t in written.items()} == {_ours(n): _bits(t) for n, t in stored.items() if n != "t2d"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == SCHEMES[scheme][1]
    read = {n: t.load() for n, t in done.reading.tensors.items()}
    for name, tensor in dense.items():
        if is_linear(name):
            worst = float((read[_ours(name)] - tensor).abs().max() / tensor.abs().max())
            assert 0 < worst < SCHEMES[scheme][2], name
    proof = verify(head, target, tmp_path / "out", plain=True)
    assert proof.passed
    assert "quantised kernels not run" in proof.engine


@pytest.mark.parametrize("scheme", ["ModelOpt FP8", "AWQ"])
def test_one_changed_bit_is_seen(scheme, head, target, tmp_path):
    quantise(head, scheme)
    convert(head, target, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    name = next(n for n, t in written.items() if t.dtype in (torch.float8_e4m3fn, torch.int32) and t.dim() == 2)
    written[name].view(torch.uint8)[0, 0] ^= 1
    save_file(written, tmp_path / "out" / "model.safetensors")
    assert not verify(head, target, tmp_path / "out", plain=True).passed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_is_written_dense_on_request(scheme, head, target, tmp_path):
    dense, _ = quantise(head, scheme)
    done = convert(head, target, tmp_path / "out", Options(dtype="bfloat16"), verify=False)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {n: t.shape for n, t in written.items()} == {_ours(n): t.shape for n, t in dense.items() if n != "t2d"}
    assert "quantization_config" not in done.layout.config


def test_what_was_written_is_read_as_ours(head, target, tmp_path):
    quantise(head, "GPTQ")
    convert(head, target, tmp_path / "out")
    again = convert(tmp_path / "out", target, tmp_path / "again")
    assert again.detection.reader.name == "converted"
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert files[0] == files[1]


def test_scales_of_keys_and_values_go_along(head, target, tmp_path):
    """ModelOpt's for FP8 caches, and the file that says so beside a config that does not."""
    quantise(head, "ModelOpt FP8")
    tensors = load_file(head / "model.safetensors")
    tensors |= {f"midlayer.self_attn.{n}_proj.{n}_scale": torch.tensor(1.5) for n in "kv"}
    save_file(tensors, head / "model.safetensors")
    described = json.loads((head / "config.json").read_text())
    del described["quantization_config"]
    (head / "config.json").write_text(json.dumps(described))
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (head / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    convert(head, target, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert float(written["layers.0.self_attn.k_proj.k_scale"]) == 1.5
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said == {"quant_method": "modelopt", "quantization": quantization}


def refusal(head: Path, target: str, out: Path, **told: Any) -> str:
    with pytest.raises(HeadError) as caught:
        convert(head, target, out, Options(**told))
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("spared", ["midlayer.mlp", "fc"])
def test_half_a_quantised_head_is_not_served_as_if(spared, head, target, tmp_path):
    """vLLM would take the other weights for quantised too; the advice works."""
    quantise(head, "compressed-tensors INT8", spared=(spared,))
    assert DEQUANTISE in refusal(head, target, tmp_path / "out")
    convert(head, target, tmp_path / "out", Options(dtype="bfloat16"))


def test_weights_that_must_be_permuted_are_not_served_as_stored(head, target, tmp_path):
    quantise(head, "ModelOpt FP8")
    assert DEQUANTISE in refusal(head, target, tmp_path / "out", aux_ids=(5, 3, 1))
    convert(head, target, tmp_path / "out", Options(aux_ids=(5, 3, 1), dtype="bfloat16"))


def test_what_only_our_classes_compute_is_not_served_quantised(target, tmp_path):
    head = MAKERS["safeailab-eagle"]().save(tmp_path / "head")
    tensors = load_file(head / "model.safetensors")
    save_file({**tensors, "fc.bias": torch.randn(tensors["fc.weight"].shape[0])}, head / "model.safetensors")
    quantise(head, "ModelOpt FP8")
    told = refusal(head, target, tmp_path / "out")
    assert "stock vLLM lacks: fc.bias" in told
    assert DEQUANTISE in told
    convert(head, target, tmp_path / "out", Options(dtype="bfloat16"))


def test_nothing_says_how(head, target, tmp_path):
    quantise(head, "AWQ")
    described = json.loads((head / "config.json").read_text())
    del described["quantization_config"]
    (head / "config.json").write_text(json.dumps(described))
    assert "and nothing says how" in refusal(head, target, tmp_path / "out")


@pytest.mark.parametrize("damage", ["NVFP4", "a scale too many", "a part missing"])
def test_other_schemes_and_damaged_ones_are_refused(damage, head, target, tmp_path):
    quantise(head, "GPTQ" if damage == "a part missing" else "ModelOpt FP8")
    tensors = load_file(head / "model.safetensors")
    if damage == "NVFP4":
        tensors["midlayer.mlp.up_proj.weight_scale_2"] = torch.tensor(1.0)
    elif damage == "a part missing":
        del tensors["midlayer.mlp.up_proj.scales"]
    else:
        tensors["midlayer.mlp.up_proj.weight_scale"] = torch.ones(7)
    save_file(tensors, head / "model.safetensors")
    assert "midlayer.mlp.up_proj" in refusal(head, target, tmp_path / "out", dtype="bfloat16")
