"""Llama-style decoder layers of a head: shapes decide, config.json says only what shapes cannot."""

from __future__ import annotations

from typing import Any

from ..errors import HeadError
from ..targets.target import Target
from .described import Described
from .intake import Intake
from .options import Options

DEFAULT_THETA = 10000.0
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def take_layers(intake: Intake, prefixes: list[str], first_norm: bool | None) -> int:
    """Move layers over, in whatever place `prefixes` name them; returns how many there are.

    `first_norm`: whether layer 0 has an `input_layernorm`; None: as the tensors say.
    """
    count = 0
    while True:
        theirs = next((p for p in _places(prefixes, count) if f"{p}.self_attn.q_proj.weight" in intake), None)
        if theirs is None:
            break
        needs_norm = first_norm if count == 0 else True
        _take_layer(intake, theirs, f"layers.{count}", needs_norm)
        count += 1
    if not count:
        intake.look(f"{prefixes[0]}.self_attn.q_proj.weight")
    return count


def _places(prefixes: list[str], count: int) -> list[str]:
    """`midlayer` and its like name layer 0 only; `layers.0` counts up."""
    counted = [p.replace(".0", f".{count}") for p in prefixes if p.endswith(".0")]
    return counted if count else [*prefixes]


def _take_layer(intake: Intake, theirs: str, ours: str, needs_norm: bool | None) -> None:
    intake.drop(f"{theirs}.self_attn.rotary_emb.inv_freq", "computed from rope_theta")
    for name in _ATTENTION:
        intake.take(f"{theirs}.self_attn.{name}.weight", f"{ours}.self_attn.{name}.weight", (None, None))
        intake.take_if(f"{theirs}.self_attn.{name}.bias", f"{ours}.self_attn.{name}.bias", (None,))
    for name in ("q_norm", "k_norm"):
        intake.take_if(f"{theirs}.self_attn.{name}.weight", f"{ours}.self_attn.{name}.weight", (None,))
    for name in _MLP:
        intake.take(f"{theirs}.mlp.{name}.weight", f"{ours}.mlp.{name}.weight", (None, None))
        intake.take_if(f"{theirs}.mlp.{name}.bias", f"{ours}.mlp.{name}.bias", (None,))
    norm = f"{theirs}.input_layernorm.weight"
    if needs_norm or (needs_norm is None and norm in intake):
        intake.take(norm, f"{ours}.input_layernorm.weight", (None,))
    intake.take(f"{theirs}.post_attention_layernorm.weight", f"{ours}.post_attention_layernorm.weight", (None,))


def decoder_flags(
    intake: Intake, described: Described, options: Options, target: Target, width: int, theta: float | None = None
) -> dict[str, Any]:
    """Flags of the layers taken. `theta`: the RoPE base this producer trains with, whatever the config says."""
    taken = intake.taken
    q, k = (taken[f"layers.0.self_attn.{name}.weight"] for name in ("q_proj", "k_proj"))
    heads, head_dim = _heads(described, q.shape[0], k.shape[0], width)
    kv_heads = k.shape[0] // head_dim
    if described.get("num_key_value_heads") not in (None, kv_heads):
        intake.note(f"config.json says {described.get('num_key_value_heads')} kv heads; k_proj has {kv_heads}, used")
    _note_windows(intake, described)
    target_length = target.config.max_position_embeddings or 2048
    own_length = described.number("max_position_embeddings") or described.number("max_sequence_length") or 0
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": taken["layers.0.mlp.gate_proj.weight"].shape[0],
        "rms_norm_eps": described.number("rms_norm_eps", float) or 1e-6,
        "max_position_embeddings": max(own_length, target_length),
        "rope_parameters": _rope(intake, described, options, target, theta),
        "qkv_bias": "layers.0.self_attn.q_proj.bias" in taken,
        "o_bias": "layers.0.self_attn.o_proj.bias" in taken,
        "mlp_bias": "layers.0.mlp.gate_proj.bias" in taken,
        "qk_norm": "layers.0.self_attn.q_norm.weight" in taken,
    }


def _note_windows(intake: Intake, described: Described) -> None:
    """speculators trains within a sliding window; what we write attends to everything before it."""
    kinds, window = described.get("layer_types"), described.get("sliding_window")
    if isinstance(kinds, list) and "sliding_attention" in kinds:
        intake.note(
            f"trained to attend within {window} tokens (layer_types in {described.where}); the written head attends to "
            "all before it: the same up to that length, drafts may be worse behind it"
        )


def _heads(described: Described, q_rows: int, k_rows: int, width: int) -> tuple[int, int]:
    heads, head_dim = described.number("num_attention_heads"), described.number("head_dim")
    if heads is None and head_dim is None:
        raise HeadError(
            "config.json does not say num_attention_heads",
            "How the attention splits into heads cannot be read from shapes",
            "Put the head's config.json beside its weights, or name it with --config",
        )
    heads = heads or max(1, q_rows // head_dim)
    head_dim = head_dim or max(1, q_rows // heads)
    if q_rows != heads * head_dim or k_rows % head_dim:
        raise HeadError(
            f"q_proj has {q_rows} rows and k_proj {k_rows}, which do not split into {heads} heads of {head_dim}",
            "num_attention_heads x head_dim must give the rows of q_proj",
            "Correct config.json",
        )
    return heads, head_dim


def _rope(
    intake: Intake, described: Described, options: Options, target: Target, trained: float | None
) -> dict[str, Any]:
    parameters = described.inside("rope_parameters")
    says = described.number("rope_theta", float)
    nested = parameters.number("rope_theta", float)
    if nested is None:  # transformers 5 keeps the base there, and exporters then write null at the top
        nested = described.inside("rope_scaling").number("rope_theta", float)
    if says is not None and nested is not None and says != nested and options.rope_theta is None and trained is None:
        raise HeadError(
            f"config.json says rope_theta is {says:g} and, in rope_parameters, {nested:g}",
            "One RoPE base was expected",
            "Pass the one it was trained with: --rope-theta",
        )
    theta = nested if nested is not None else says
    if options.rope_theta is not None:
        theta = options.rope_theta
    elif trained is not None:
        if theta not in (None, trained):
            intake.note(
                f"config.json says rope_theta {theta:g}, but this producer trains with {trained:g}, used; "
                "--rope-theta overrides it"
            )
        theta = trained
    elif theta is None:
        theta = DEFAULT_THETA
        intake.note(f"config.json has no rope_theta: {DEFAULT_THETA:g}, this producer's default")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
    scaling = described.inside("rope_scaling").values or parameters.values
    rope |= {("rope_type" if key == "type" else key): v for key, v in scaling.items() if key != "rope_theta"}
    if rope["rope_type"] == "mrope":  # equal to plain RoPE for text, whose three positions are one
        rope = {"rope_type": "default", "rope_theta": float(theta)}
        intake.note("multimodal RoPE read as plain RoPE, which it is for text")
    base = target.config.rope_parameters.get("rope_theta")
    intake.note(f"RoPE base {theta:g}" + (f"; the target's is {base:g}" if base and base != theta else ""))
    return rope
