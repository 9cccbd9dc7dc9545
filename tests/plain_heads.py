"""Undamaged heads of every producer with random weights, to be damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .known_answer.target import VOCAB, WIDTH

INNER, DRAFTS = 512, 12


@dataclass
class Head:
    """What lies in a head's folder, and the options that convert it."""

    tensors: dict[str, Tensor]
    config: Any = None
    options: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            (folder / "config.json").write_text(json.dumps(self.config))
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / "model.safetensors")
        return folder


def feature() -> Head:
    shapes = {"input_projection": (WIDTH, 2 * WIDTH), "output_projection": (WIDTH, WIDTH)}
    tensors = _linears(shapes) | _blocks("regression")
    return Head(tensors, options=["--token-pairing", "next"])


def surgery() -> Head:
    tensors = {"embeddings.weight": torch.randn(VOCAB, WIDTH)} | _blocks("mlp")
    return Head(tensors, {"model_type": "eagle", "hidden_size": WIDTH, "vocab_size": VOCAB, "mlp_layers": 2})


def projection() -> Head:
    tensors = {
        "projection_weights": torch.randn(32, WIDTH),
        "projection_bias": torch.randn(32),
        "lm_head_weights": torch.randn(VOCAB, 32),
    }
    return Head(tensors, options=["--token-pairing", "next"])


def safeailab() -> Head:
    tensors = {"fc.weight": torch.randn(WIDTH, 2 * WIDTH)} | _layer("layers.0", WIDTH)
    return Head(tensors, _llama())


def safeailab3() -> Head:
    d2t = torch.arange(DRAFTS)  # every second token
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[torch.arange(DRAFTS) + d2t] = True
    tensors = {
        "fc.weight": torch.randn(WIDTH, 3 * WIDTH),
        **_layer("midlayer", 2 * WIDTH),
        "midlayer.hidden_norm.weight": torch.rand(WIDTH),
        "midlayer.input_layernorm.weight": torch.rand(WIDTH),
        "norm.weight": torch.rand(WIDTH),
        "lm_head.weight": torch.randn(DRAFTS, WIDTH),
        "d2t": d2t,
        "t2d": mask,
    }
    return Head(tensors, _llama(draft_vocab_size=DRAFTS, eagle_aux_hidden_state_layer_ids=[1, 3, 5]))


def _linears(shapes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


def _blocks(prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i in (0, 3):
        found |= _linears({f"{prefix}.{i}": (WIDTH, WIDTH)})
        found |= {f"{prefix}.{i + 2}.weight": torch.rand(WIDTH), f"{prefix}.{i + 2}.bias": torch.randn(WIDTH)}
    return found


def _layer(prefix: str, width_in: int) -> dict[str, Tensor]:
    return {
        f"{prefix}.self_attn.q_proj.weight": torch.randn(WIDTH, width_in),
        f"{prefix}.self_attn.k_proj.weight": torch.randn(WIDTH // 2, width_in),
        f"{prefix}.self_attn.v_proj.weight": torch.randn(WIDTH // 2, width_in),
        f"{prefix}.self_attn.o_proj.weight": torch.randn(WIDTH, WIDTH),
        f"{prefix}.mlp.gate_proj.weight": torch.randn(INNER, WIDTH),
        f"{prefix}.mlp.up_proj.weight": torch.randn(INNER, WIDTH),
        f"{prefix}.mlp.down_proj.weight": torch.randn(WIDTH, INNER),
        f"{prefix}.post_attention_layernorm.weight": torch.rand(WIDTH),
    }


def _llama(**more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 1,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        **more,
    }


MAKERS: dict[str, Callable[[], Head]] = {
    "safeailab-eagle": safeailab,
    "safeailab-eagle3": safeailab3,
    "feature": feature,
    "surgery": surgery,
    "projection": projection,
}
