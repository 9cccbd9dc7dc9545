"""Targets in every layout that a checkpoint can have, without a class that knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.targets.target import read_target

V, H, L = 40, 16, 3
_SIZES = {"vocab_size": V, "hidden_size": H, "num_hidden_layers": L}
_CODE = {"auto_map": {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}}
_OTHERS = {"vision_config": {"hidden_size": 7, "num_hidden_layers": 2, "vocab_size": 9}, "audio_config": {"d_model": 5}}

#: config.json, and the names of the embedding and of the lm_head (None: tied).
LAYOUTS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "code on the hub": ({"model_type": "kimi_k2", **_CODE, **_SIZES}, "model.embed_tokens", "lm_head"),
    "ChatGLM": (
        {"model_type": "chatglm", **_CODE, "padded_vocab_size": V, "vocab_size": V - 5, "hidden_size": H, "num_layers": L},
        "transformer.embedding.word_embeddings", "transformer.output_layer",
    ),
    "InternLM2": ({"model_type": "internlm2", **_CODE, **_SIZES}, "model.tok_embeddings", "output"),
    "InternVL with its own code": (
        {"model_type": "internvl_chat", **_CODE, **_OTHERS, "llm_config": {"model_type": "internlm2", **_SIZES}},
        "language_model.model.tok_embeddings", "language_model.output",
    ),
    "DeepSeek-VL2": (
        {"model_type": "deepseek_vl_v2", **_OTHERS, "language_config": {"model_type": "deepseek_v2", **_SIZES}},
        "language.model.embed_tokens", "language.lm_head",
    ),
    "text two levels down": (
        {"model_type": "an_omni", "thinker_config": {"text_config": _SIZES, **_OTHERS}, "talker_config": {"text_config": {**_SIZES, "hidden_size": 8}}},
        "thinker.model.embed_tokens", "thinker.lm_head",
    ),
    "the vocabulary at the top": (
        {"model_type": "an_ovis", "vocab_size": V, "llm_config": {"hidden_size": H, "num_hidden_layers": L}},
        "llm.model.embed_tokens", "llm.lm_head",
    ),
    "Bailing": ({"model_type": "bailing_moe", **_CODE, **_SIZES}, "model.word_embeddings", "lm_head"),
    "names nobody knows": ({"model_type": "novel", **_SIZES}, "backbone.lexicon", None),
    "GPT-like sizes": ({"model_type": "novel", "n_embd": H, "n_layer": L, "n_vocab": V}, "transformer.wte", None),
}  # fmt: skip


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(V, H), torch.randn(V, H)


def write(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], file: str = "model.safetensors"
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)
    return str(folder)


def whole(embedding: str, lm_head: str | None) -> dict[str, torch.Tensor]:
    """Tensors as real checkpoints have them: other parts' tables, layers with matrices of the same sizes, norms."""
    table, head = tables()
    found = {f"{embedding}.weight": table, "model.norm.weight": torch.ones(H)}
    if lm_head is not None:
        found[f"{lm_head}.weight"] = head
    found |= {
        "vision_tower.embeddings.weight": torch.randn(V, H), "talker.model.embed_tokens.weight": torch.randn(V, 8),
        "model.layers.3.embed_tokens.weight": torch.randn(V, H), "model.layers.0.mlp.output.weight": torch.randn(H, H),
        "audio_tower.embed_positions.weight": torch.randn(9, H),
    }  # fmt: skip
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_without_a_class(name, tmp_path):
    config, embedding, lm_head = LAYOUTS[name]
    target = read_target(write(tmp_path, config, whole(embedding, lm_head)))
    assert (target.hidden_size, target.vocab_size, target.num_layers) == (H, V, L)
    table, head = tables()
    assert torch.equal(target.embedding.load(), table)
    assert torch.equal(target.lm_head.load(), table if lm_head is None else head)
    assert target.tied == (lm_head is None)


def test_no_code_is_run(tmp_path):
    folder = write(tmp_path, LAYOUTS["code on the hub"][0], whole("model.embed_tokens", "lm_head"))
    for name in ("configuration.py", "modeling.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    assert read_target(folder).hidden_size == H
    assert not (tmp_path / "ran").exists()


_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **_SIZES,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("kind", ["one .bin", "indexed .bin", "indexed shards", "beside Mistral's copy"])
def test_files(kind, tmp_path):
    tensors = whole("model.embed_tokens", "lm_head")
    first = {n: t for n, t in tensors.items() if "lm_head" not in n}
    second = {n: t for n, t in tensors.items() if "lm_head" in n}
    if kind == "one .bin":
        folder = write(tmp_path, _LLAMA, tensors, "pytorch_model.bin")
    else:
        suffix = ".bin" if "bin" in kind else ".safetensors"
        stem = "pytorch_model" if "bin" in kind else "model"
        write(tmp_path, _LLAMA, first, f"{stem}-1{suffix}")
        folder = write(tmp_path, _LLAMA, second, f"{stem}-2{suffix}")
        if kind == "beside Mistral's copy":
            save_file({"tok_embeddings.weight": torch.zeros(V, H)}, tmp_path / "consolidated.safetensors")
        else:
            names = {n: f"{stem}-{1 if n in first else 2}{suffix}" for n in tensors}
            (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": names}))
    target = read_target(folder)
    assert torch.equal(target.embedding.load(), tables()[0])
    assert torch.equal(target.lm_head.load(), tables()[1])


def test_mistral_own_format(tmp_path):
    table, head = tables()
    save_file(
        {"tok_embeddings.weight": table, "output.weight": head, "norm.weight": torch.ones(H)},
        tmp_path / "consolidated.safetensors",
    )
    described = {
        "dim": H,
        "n_layers": L,
        "vocab_size": V,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_dim": 8,
        "hidden_dim": 32,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
    }
    (tmp_path / "params.json").write_text(json.dumps(described))
    target = read_target(str(tmp_path))
    assert (target.hidden_size, target.vocab_size, target.num_layers, target.config.head_dim) == (H, V, L, 8)
    assert target.config.rope_parameters["rope_theta"] == 1e6
    assert torch.equal(target.lm_head.load(), head)


def quantised(kind: str, table: torch.Tensor) -> dict[str, torch.Tensor]:
    """An lm_head as quantisers store it."""
    if kind == "block FP8":
        scale = torch.rand(5, 2) * 0.05 + 0.01
        spread = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
        return {"lm_head.weight": (table / spread).to(torch.float8_e4m3fn), "lm_head.weight_scale_inv": scale}
    if kind in ("FP8 by rows", "FP8 by rows, flat"):
        scale = table.abs().amax(1, keepdim=True) / 400
        return {
            "lm_head.weight": (table / scale).to(torch.float8_e4m3fn),
            "lm_head.weight_scale": scale[:, 0] if "flat" in kind else scale,
        }
    if kind == "FP8, one scale":
        return {"lm_head.weight": (table / 0.01).to(torch.float8_e4m3fn), "lm_head.weight_scale": torch.tensor(0.01)}
    scale = table.abs().amax(1, keepdim=True) / 127
    return {"lm_head.weight": (table / scale).round().to(torch.int8), "lm_head.weight_scale": scale}


@pytest.mark.parametrize("kind", ["block FP8", "FP8 by rows", "FP8 by rows, flat", "FP8, one scale", "INT8"])
def test_an_lm_head_with_scales_is_dequantised(kind, tmp_path):
    table, head = tables()
    target = read_target(write(tmp_path, _LLAMA, {"model.embed_tokens.weight": table, **quantised(kind, head)}))
    read = target.lm_head.load().float()
    assert read.shape == (V, H)
    assert torch.nn.functional.cosine_similarity(read, head).min() > 0.99
    assert (read - head).abs().max() < 0.2


PACKED = {
    "GPTQ": {"lm_head.qweight": torch.zeros(2, V, dtype=torch.int32), "lm_head.scales": torch.zeros(1, V)},
    "compressed-tensors": {"lm_head.weight_packed": torch.zeros(V, 2, dtype=torch.int32)},
    "NVFP4": {
        "lm_head.weight": torch.zeros(V, 8, dtype=torch.uint8),
        "lm_head.weight_scale": torch.zeros(V, 1).to(torch.float8_e4m3fn),
    },
}


@pytest.mark.parametrize("kind", PACKED)
def test_an_lm_head_that_is_packed_is_refused_by_name(kind, tmp_path):
    tensors = {"model.embed_tokens.weight": tables()[0], **PACKED[kind]}
    target = read_target(write(tmp_path, _LLAMA, tensors))
    assert torch.equal(target.embedding.load(), tables()[0]), "the embedding is plain"
    with pytest.raises(HeadError, match="lm_head is stored as"):
        _ = target.lm_head


def test_contradictions_are_refused(tmp_path):
    table, head = tables()
    wide = {"model.embed_tokens.weight": torch.randn(V, 2 * H), "lm_head.weight": head}
    with pytest.raises(HeadError, match="hidden_size 16"):
        _ = read_target(write(tmp_path / "wide", _LLAMA, wide)).embedding
    with pytest.raises(HeadError, match="no lm_head, and its config"):
        _ = read_target(write(tmp_path / "untied", _LLAMA, {"model.embed_tokens.weight": table})).lm_head
    layers = {"model.layers.0.mlp.weight": torch.randn(H, H)}
    with pytest.raises(HeadError, match=r"embedding of the target .* was not found"):
        _ = read_target(write(tmp_path / "layers", _LLAMA, layers)).embedding


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_merged_or_refused(beside, tmp_path):
    folder = write(tmp_path, _LLAMA, whole("model.embed_tokens", "lm_head"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 4}))
    save_file(
        {"base_model.model.model.layers.0.q.lora_A.weight": torch.zeros(4, H)}, tmp_path / "adapter_model.safetensors"
    )
    if not beside:
        (tmp_path / "config.json").unlink()
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        HeadError, match=r"beside the target .* a LoRA adapter" if beside else "is a LoRA adapter of org/base"
    ) as caught:
        read_target(folder)
    assert "merge" in caught.value.action.lower()
    if beside:  # the advice, followed
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name).unlink()
        assert torch.equal(read_target(folder).embedding.load(), tables()[0])
