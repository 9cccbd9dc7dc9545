"""The models that `draft_step` times: a target, our heads without attention, and stock vLLM's EAGLE-1 head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB, LAYERS = 32_000, 4


def write_models(folder: Path, width: int) -> None:
    """The target and one head of each kind, with random weights, in bf16."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..configs import AttentionFreeConfig
    from ..reference import build_reference

    torch.manual_seed(0)
    base: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": width}
    decoder: dict[str, Any] = {"intermediate_size": 11 * width // 4, "num_attention_heads": width // 64}
    llama = LlamaConfig(**base, **decoder, num_hidden_layers=LAYERS, bos_token_id=None, eos_token_id=None)
    LlamaForCausalLM(llama).to(torch.bfloat16).save_pretrained(folder / "target")
    ours: dict[str, dict[str, Any]] = {
        "feature": {"input_projection": width, "num_blocks": 2, "block_residual": True, "output_projection": True},
        "surgery": {"use_hidden": False, "num_blocks": 2, "block_activation": "relu"},
        "projection": {"input_projection": width, "input_activation": "silu", "use_embedding": False, "own_lm_head": True},
    }  # fmt: skip
    for name, flags in ours.items():
        head = build_reference(AttentionFreeConfig(**base, **flags)).to(torch.bfloat16)
        head.config.save_pretrained(folder / name)
        save_file({k: v.contiguous() for k, v in head.state_dict().items()}, folder / name / "model.safetensors")
    # SafeAILab's layout, which stock vLLM reads: one Llama layer without its input norm, and fc.
    llama.num_hidden_layers, llama.architectures = 1, ["LlamaForCausalLM"]
    llama.save_pretrained(folder / "stock")
    layer = LlamaForCausalLM(llama).to(torch.bfloat16).model.layers.state_dict()
    tensors = {f"layers.{name}": tensor for name, tensor in layer.items() if "input_layernorm" not in name}
    tensors["fc.weight"] = torch.randn(width, 2 * width, dtype=torch.bfloat16) * (2 * width) ** -0.5
    save_file(tensors, folder / "stock" / "model.safetensors")
