"""Writing trained heads in the layout their field publishes, for `vllm-eagle convert` to read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..configs import Eagle3Config
from ..reference import ReferenceHead


def export_eagle3(head: ReferenceHead, folder: Path) -> None:
    """SafeAILab's EAGLE-3 layout in bf16: `midlayer.*`, `d2t` offsets and the `t2d` mask, no embedding."""
    config = head.config
    assert isinstance(config, Eagle3Config)
    tensors = {
        name.replace("layers.0.", "midlayer."): tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in head.state_dict().items()
        if name != "embed_tokens.weight"
    }
    if head.d2t is not None:
        mask = torch.zeros(config.vocab_size, dtype=torch.bool)
        mask[head.target_ids(torch.arange(config.draft_vocab))] = True
        tensors["t2d"] = mask
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    rope = config.rope_parameters or {}
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope.get("rope_theta"),
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
