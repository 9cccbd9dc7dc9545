"""Targets for `test_beside`: with a tokenizer, and quantised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from .known_answer.target import VOCAB

#: The words of the targets' language; those around thinking first.
WORDS = ["<think>", "</think>", *(chr(ord("a") + i) for i in range(VOCAB - 2))]


def write_tokenizer(folder: Path) -> Path:
    """Give a known-answer target a tokenizer of one word a token."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", eos_token="v").save_pretrained(folder)
    return folder


def quantise(target: Path, folder: Path) -> Path:
    """The target with 8-bit weights and activations, as compressed-tensors stores it."""
    shutil.copytree(target, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight = tensors.pop(name)
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
