"""EAGLE-3 heads with random weights, as trainers of Llama-like drafts save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .tiny import VOCAB, WIDTH

HEADS, KV_HEADS, HEAD_DIM, INNER, DRAFTS = 4, 2, 32, 64, 12
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "num_hidden_layers": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "rope_theta": 10000.0,
    "vocab_size": VOCAB, "draft_vocab_size": DRAFTS, "tie_word_embeddings": False,
    "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
}  # fmt: skip


def save_head(folder: Path, without: tuple[str, ...] = (), **config: Any) -> Path:
    """A head that reads three layers, its config with other keys or `without` some."""
    torch.manual_seed(1)
    draw = lambda *shape: torch.randn(*shape) * 0.2  # noqa: E731
    layer = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, 2 * WIDTH), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, 2 * WIDTH),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, 2 * WIDTH), "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
    }  # fmt: skip
    tensors = {f"midlayer.{name}.weight": draw(*shape) for name, shape in layer.items()}
    norms = ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm")
    tensors |= {f"{name}.weight": 1 + draw(WIDTH) for name in norms}
    ids = torch.arange(DRAFTS) * 2
    marked = torch.zeros(VOCAB, dtype=torch.bool)
    marked[ids] = True
    tensors |= {"fc.weight": draw(WIDTH, 3 * WIDTH), "lm_head.weight": draw(DRAFTS, WIDTH)}
    tensors |= {"d2t": ids - torch.arange(DRAFTS), "t2d": marked}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {key: value for key, value in {**CONFIG, **config}.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(described))
    return folder
