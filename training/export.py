"""Trained heads in the layouts their producers publish, for `vllm-eagle convert` to read. All in 16 bits.

| family | layout |
|---|---|
| feature | a bare state dict in `head.pt`: input_projection over [hidden, embed], regression, output_projection |
| surgery | `eagle_model.pt`: mlp, and copies of the target's embedding and lm_head unless left out |
| projection | plain matrices in `head.npz` |
| eagle1 | SafeAILab EAGLE-1: `fc`, `layers.0` |
| eagle3 | SafeAILab EAGLE-3: `fc`, `midlayer`, `norm`, `lm_head`, `d2t`, `t2d` |
| medusa | what vLLM itself serves: `blocks`, and as `lm_heads.0` a copy of the target's lm_head |
"""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ..configs import Eagle3Config, HeadConfig, TransformerHeadConfig
from ..errors import HeadError
from ..reference import ReferenceHead
from . import medusa
from .conditioning import unconditioned
from .files import replaced, write_json

Files = tuple[str, bytes, dict[str, Any]]


def export_head(family: str, head: ReferenceHead, folder: Path, tables: bool = False) -> None:
    """Write `head` to `folder`; each file appears whole.

    `tables`: with the copies of the target's embedding and lm_head that a surgery head's producer keeps
    beside the MLP (`convert` drops them again).

    Raises:
        HeadError: a weight is not finite; nothing is written.
    """
    weights = unconditioned(head, {name: tensor.detach().cpu() for name, tensor in head.state_dict().items()})
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise HeadError(
                f"the trained weight {name} is not finite", "Nothing was exported", "Train anew, more slowly"
            )
    if tables and family == "surgery":
        assert head.target_embedding is not None
        assert head.target_lm_head is not None
        weights |= {"embeddings.weight": head.target_embedding.cpu(), "lm_head.weight": head.target_lm_head.cpu()}
    if family == "medusa":
        assert head.target_lm_head is not None
        weights |= {"lm_head.weight": head.target_lm_head.cpu()}
    name, content, described = _LAYOUTS[family](head.config, weights)
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / name) as partial:
        partial.write_bytes(content)
    write_json(folder / "config.json", described)


def next_command(family: str, folder: str, target: str, steps: int) -> str:
    """What to run to have the head in `folder` served."""
    if family != "medusa":
        return shlex.join(["vllm-eagle", "convert", folder, "--target", target, "-o", f"{folder}-served"])
    speculative = {"method": "medusa", "model": folder, "num_speculative_tokens": steps}
    return shlex.join(["vllm", "serve", target, "--speculative-config", json.dumps(speculative)])


def _feature(config: HeadConfig, weights: dict[str, Tensor]) -> Files:
    joined = weights.pop("body.input_projection.weight")
    state = {n.removeprefix("body.").replace("blocks.", "regression."): t for n, t in weights.items()}
    # Ours is [embed, hidden]; its document's is [hidden, embed].
    state["input_projection.weight"] = torch.cat(joined.split([config.embed_width, config.hidden_size], 1)[::-1], 1)
    described = {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size, "token_pairing": "next"}
    return "head.pt", _pickled(_halved(state)), described


def _surgery(config: HeadConfig, weights: dict[str, Tensor]) -> Files:
    state = {n.replace("body.blocks.", "mlp."): t for n, t in weights.items()}
    blocks = sum(1 for n in state if n.startswith("mlp.") and n.endswith(".weight")) // 2
    described = {
        "model_type": "eagle",
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "mlp_layers": blocks,
    }
    return "eagle_model.pt", _pickled(_halved(state)), described


def _projection(config: HeadConfig, weights: dict[str, Tensor]) -> Files:
    matrices = {
        "projection_weights": weights["body.input_projection.weight"],
        "projection_bias": weights["body.input_projection.bias"],
        "lm_head_weights": weights["lm_head.weight"],
    }
    file = io.BytesIO()
    np.savez(file, **{n: t.to(torch.float16).numpy() for n, t in matrices.items()})  # numpy has no bfloat16
    described = {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size, "token_pairing": "next"}
    return "head.npz", file.getvalue(), described


def _eagle1(config: HeadConfig, weights: dict[str, Tensor]) -> Files:
    described = _llama(config) | {"bias": "fc.bias" in weights}
    return "model.safetensors", save(_halved(weights), {"format": "pt"}), described


def _eagle3(config: HeadConfig, weights: dict[str, Tensor]) -> Files:
    assert isinstance(config, Eagle3Config)
    tensors = {n.replace("layers.0.", "midlayer."): t for n, t in weights.items()}
    if config.reduced_vocab:
        mask = torch.zeros(config.vocab_size, dtype=torch.bool)
        mask[torch.arange(config.draft_vocab) + weights["d2t"]] = True
        tensors["t2d"] = mask
    described = _llama(config) | {
        "draft_vocab_size": config.draft_vocab,
        "eagle_aux_hidden_state_layer_ids": config.eagle_aux_hidden_state_layer_ids,
    }
    return "model.safetensors", save(_halved(tensors), {"format": "pt"}), described


def _medusa(config: HeadConfig, weights: dict[str, Tensor]) -> Files:
    tensors = {n.replace("lm_head.", "lm_heads.0."): t for n, t in weights.items()}
    return "model.safetensors", save(_halved(tensors), {"format": "pt"}), medusa.described(config)


_LAYOUTS = {
    "feature": _feature,
    "surgery": _surgery,
    "projection": _projection,
    "eagle1": _eagle1,
    "eagle3": _eagle3,
    "medusa": _medusa,
}


def _llama(config: HeadConfig) -> dict[str, Any]:
    assert isinstance(config, TransformerHeadConfig)
    return {
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
        "rope_theta": (config.rope_parameters or {}).get("rope_theta"),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: (t.to(torch.bfloat16) if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}


def _pickled(tensors: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()
