"""A written head read back as a server reads it: from its config and tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ...configs import HEAD_CONFIGS, Eagle3Config, EagleConfig, HeadConfig
from ...errors import HeadError
from ...preflight import compare_tensors
from ...reference import ReferenceHead, build_reference, expected_tensors

#: Keys of stock configs that ours have under the same name.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_parameters",
)  # fmt: skip
_EAGLE3 = (
    "draft_vocab_size", "target_hidden_size", "num_aux_hidden_states", "eagle_aux_hidden_state_layer_ids",
    "norm_before_residual", "norm_before_fc", "fc_norm",
)  # fmt: skip
#: What is written beside the flags: where the head is from, and what a server reads to find its target.
_BESIDES = ("eagle_provenance", "speculators_config", "speculators_model_type", "transformer_layer_config")


def read_written(folder: Path, embedding: Tensor, lm_head: Tensor) -> ReferenceHead:
    """The head in a folder that `convert` wrote, with the tables of its target lent to it.

    Raises:
        HeadError: config and tensors do not agree.
    """
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    config = written_config(described, tensors)
    compare_tensors(expected_tensors(config), {name: tuple(t.shape) for name, t in tensors.items()})
    head = build_reference(config)
    head.load_state_dict({n: t if n == "d2t" else t.float() for n, t in tensors.items()})
    head.attach_target(embedding, lm_head)
    return head.eval()


def written_config(described: dict[str, Any], tensors: Mapping[str, Any]) -> HeadConfig:
    """What a written config.json says with these tensors beside it."""
    kind = described.get("model_type")
    if kind in HEAD_CONFIGS:
        return HEAD_CONFIGS[kind].from_dict({k: v for k, v in described.items() if k not in _BESIDES})
    # Stock vLLM's own classes: what they make of these keys, not what we meant by them.
    common: dict[str, Any] = {name: described[name] for name in _SHARED if name in described}
    if kind == "qwen3":
        common |= {"qk_norm": True, "qkv_bias": described.get("attention_bias", False)}
    own = {"own_embedding": "embed_tokens.weight" in tensors, "own_lm_head": "lm_head.weight" in tensors}
    fc = tensors.get("fc.weight")
    if fc is None:
        raise HeadError("fc.weight is missing", "Stock EAGLE heads have it", "Convert the head again")
    if "norm.weight" not in tensors:
        return EagleConfig(**common, **own)
    if "sliding_attention" in described.get("layer_types", ()):
        common["sliding_window"] = described["sliding_window"]
    more = {name: described[name] for name in _EAGLE3 if name in described}
    feedback = "post_norm" if described.get("norm_output") else "pre_norm"
    parallel = {}
    if "mask_hidden" in tensors:
        parallel = {"parallel_drafting": True, "mask_token_id": described.get("pard_token")}
    return Eagle3Config(**common, **own, **more, **parallel, output_norm=True, feedback=feedback)
