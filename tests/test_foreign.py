"""What is no EAGLE head for us to convert is called by its name, with what serves it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config
from vllm_eagle_plugin.conversion.detect import detect
from vllm_eagle_plugin.conversion.source import read_source

from vllm_eagle_plugin.errors import HeadError

from .plain_heads import MAKERS

W = (8, 8)


def write(folder: Path, names: dict[str, tuple[int, ...]], config: dict | None = None, file: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.randn(shape) for name, shape in names.items()}, folder / f"{file}.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(HeadError) as caught:
        detect(read_source(folder))
    return str(caught.value)


_DFLASH = {"layers.0.self_attn.q_proj.weight": W, "fc.weight": (8, 40), "hidden_norm.weight": (8,), "norm.weight": (8,)}
_WQ = {f"layers.0.attention.{n}.weight": W for n in ("wq", "wk", "wv", "wo")}
_MINICPM = {"fc.weight": (8, 16), "embed_tokens.weight": (32, 8), "norm.weight": (8,)}
_EAGLE3 = {"fc.weight": (8, 24), "layers.0.self_attn.o_proj.weight": W, "norm.weight": (8,)}

#: What is said of each: tensors, config, words of its name and of what serves it.
KINDS = {
    "Domino, by its projector": (
        _DFLASH, {"architectures": ["DFlashDraftModel"], "dflash_config": {"projector_type": "domino"}}, ("Domino", "46707"),
    ),
    "Domino, later projector": (
        _DFLASH, {"architectures": ["DFlashDraftModel"], "dflash_config": {"projector_type": "causal_v5"}}, ("Domino",),
    ),
    "Domino, by its tensors": (_DFLASH | {"prefix_gru.weight_ih_l0": (24, 8)}, None, ("Domino",)),
    "DFlash": (_DFLASH, {"architectures": ["DFlashDraftModel"]}, ("DFlash", '"method": "dflash"')),
    "ViSpec": (
        {"fc.weight": (8, 16), "layers.0.self_attn.q_proj.weight": W, "img_fc.weight": (8, 16), "imadpt.q": (1, 2, 4)},
        {"architectures": ["LlamaForCausalLM"]}, ("ViSpec", "its authors' own code"),
    ),
    "ViSpec, wrapped": ({"module.img_fc.weight": (8, 16), "module.fc.weight": (8, 16)}, None, ("ViSpec",)),
    "MiniCPM": (
        _MINICPM | {"eagle_layers.0.self_attn.q_proj.weight": W}, {"model_type": "minicpm"},
        ("MiniCPM's own", "EagleMiniCPMForCausalLM"),
    ),
    "MiniCPM, by its norms": (_MINICPM | {"input_norm1.weight": (8,), "input_norm2.weight": (8,)}, None, ("MiniCPM",)),
    "Mistral's format": (
        {"eagle_linear.weight": (8, 16), "norm.weight": (8,), **_WQ}, None,
        ("Mistral's own format", "--config-format mistral --load-format mistral"),
    ),
    "Mistral's format, quantised": (
        {"eagle_linear.weight": (8, 16), "eagle_linear.qscale_weight": (), **_WQ}, None, ("Mistral's own format",),
    ),
    "Gemma-4 of DeepSpec": (_EAGLE3, {"architectures": ["Gemma4Eagle3Model"]}, ("Gemma-4", "DeepSpec")),
    "Medusa": ({"medusa_head.0.0.linear.weight": W}, None, ("Medusa", '"method": "medusa"')),
    "Hydra": ({"hydra_mlp.0.weight": W}, None, ("Hydra",)),
    "MTP": ({"mtp.layers.0.eh_proj.weight": W}, None, ("MTP", '"method": "mtp"')),
    "MLA": (_EAGLE3 | {"midlayer.self_attn.kv_a_proj_with_mqa.weight": W}, None, ("MLA", "Eagle3DeepseekV2ForCausalLM")),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_is_called_by_its_name_with_what_serves_it(kind, tmp_path):
    names, config, words = KINDS[kind]
    told = refusal(write(tmp_path / "head", names, config))
    assert all(word in told for word in words), told


def test_mistrals_files_are_read_as_they_lie(tmp_path):
    names, _, words = KINDS["Mistral's format"]
    folder = write(tmp_path / "head", names, file="consolidated")
    (folder / "params.json").write_text(json.dumps({"dim": 8, "n_layers": 1, "vocab_size": 32}))
    told = refusal(folder)
    assert all(word in told for word in words), told


_SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaConfig(**_SIZES, intermediate_size=32),
    "one layer, tied": lambda: LlamaConfig(
        **{**_SIZES, "num_hidden_layers": 1}, intermediate_size=32, tie_word_embeddings=True
    ),
    "qwen3": lambda: Qwen3Config(**_SIZES, intermediate_size=32, num_key_value_heads=2, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
    "mixture of experts": lambda: MixtralConfig(
        **_SIZES, intermediate_size=32, num_key_value_heads=2, num_local_experts=2
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_whole_language_model_is_no_head(kind, tmp_path):
    AutoModelForCausalLM.from_config(MODELS[kind]()).save_pretrained(tmp_path)
    assert "is a whole language model, such as a target, and not a head" in refusal(tmp_path)


def test_a_model_inside_a_model_of_pictures_is_no_head(tmp_path):
    layer = {f"model.language_model.layers.{i}.self_attn.{n}_proj.weight": W for i in (0, 1) for n in "qkvo"}
    text = {"model.language_model.embed_tokens.weight": (32, 8), "model.language_model.norm.weight": (8,), **layer}
    folder = write(tmp_path, {**text, "model.visual.patch_embed.proj.weight": W})
    assert "is a whole language model" in refusal(folder)


@pytest.mark.parametrize("producer", MAKERS)
def test_heads_are_not_taken_for_anything_else(producer, tmp_path):
    MAKERS[producer]().save(tmp_path)
    assert detect(read_source(tmp_path)).reader.name == producer


def test_parts_of_a_target_alone_are_no_head(tmp_path):
    folder = write(tmp_path, {"target_model.layers.0.mlp.up_proj.weight": W, "verifier_lm_head.weight": W})
    with pytest.raises(HeadError, match=r"all 2 tensors of .* are of the target"):
        read_source(folder)
