"""Llama-style decoder layers of a head: shapes decide, config.json says only what shapes cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..configs import GATED_ACTIVATIONS
from ..errors import HeadError
from ..targets.stored import Stored
from ..targets.target import Target
from .described import Described
from .intake import Intake
from .options import Options
from .rope import UNKNOWN, Rope, RopeMeaning
from .windows import Windows, read_window

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


@dataclass(frozen=True)
class LayerMeaning:
    """What a producer's decoder layers do that their tensors do not show."""

    rope: RopeMeaning = UNKNOWN
    windows: Windows = Windows.UNKNOWN
    #: Whether its layers have biases wherever `attention_bias` and `mlp_bias` say so.
    flagged_biases: bool = False


def if_named(options: Options, rope: RopeMeaning) -> dict[str, Any]:
    """The layers of a trainer that only its layout speaks for: others use that layout, so its code counts if the user
    names it."""
    return {"rope": rope, "windows": Windows.IGNORED} if options.producer else {}


def decoder_flags(
    intake: Intake, described: Described, options: Options, target: Target, width: int, meaning: LayerMeaning
) -> dict[str, Any]:
    """Flags of the layers taken."""
    taken = intake.taken
    q, k = (taken[f"layers.0.self_attn.{name}.weight"] for name in ("q_proj", "k_proj"))
    heads, kv_heads, head_dim = _heads(described, q.shape[0], k.shape[0])
    target_length = target.config.max_position_embeddings
    lengths = [described.number(key) for key in ("max_position_embeddings", "max_sequence_length")]
    own_length = next((length for length in lengths if length is not None), 0)
    _demand_biases(taken, described, meaning)
    flags = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": taken["layers.0.mlp.gate_proj.weight"].shape[0],
        "hidden_act": _activation(described, options),
        "rms_norm_eps": described.number("rms_norm_eps", float, 1e-6),
        "max_position_embeddings": max(own_length, target_length or 2048),
        "qkv_bias": "layers.0.self_attn.q_proj.bias" in taken,
        "o_bias": "layers.0.self_attn.o_proj.bias" in taken,
        "mlp_bias": "layers.0.mlp.gate_proj.bias" in taken,
        "qk_norm": "layers.0.self_attn.q_norm.weight" in taken,
    }
    if "rope_parameters" in options.flags:
        for key in ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"):
            described.get(key)  # what the user says instead accounts for them
    else:
        rope = Rope(described, meaning.rope, options.rope_theta, head_dim, target_length or own_length)
        flags["rope_parameters"] = rope.parameters
        intake.notes += rope.notes
        _compare_base(intake, rope.parameters["rope_theta"], target)
    if "sliding_window" not in options.flags:
        layers = sum(name.endswith("self_attn.q_proj.weight") for name in taken)
        window, notes = read_window(described, meaning.windows, layers, target_length or own_length)
        flags["sliding_window"] = window
        intake.notes += notes
    return flags


def _demand_biases(taken: Mapping[str, Stored], described: Described, meaning: LayerMeaning) -> None:
    for flag, names in (("attention_bias", "qkvo"), ("mlp_bias", ("gate", "up", "down"))):
        part = "self_attn" if flag == "attention_bias" else "mlp"
        missing = [n for n in names if f"layers.0.{part}.{n}_proj.bias" not in taken]
        if meaning.flagged_biases and described.flag(flag) and missing:
            raise HeadError(
                f"{described.where} says {flag} is true, and {part}.{missing[0]}_proj.bias is missing",
                "This producer's layers have all of these biases then",
                f"Export the head again, whole, or correct {flag} if it was trained without them",
            )


def _activation(described: Described, options: Options) -> str:
    """The MLP's, by one of transformers' names; whether anything computes it is checked with the whole config."""
    told = options.flags.get("hidden_act")
    if isinstance(told, str):
        return told
    says, other = described.text("hidden_act"), described.text("hidden_activation")
    if not says and other not in ("", "silu"):
        raise HeadError(
            f"{described.where} has no hidden_act, and hidden_activation {other}",
            "Draft heads' trainers read hidden_act, and some models' configs have the other",
            f"Pass the activation it was trained with: --set hidden_act={other}, or --set hidden_act=silu",
        )
    name = {"": "silu", "swish": "silu", "gelu_python": "gelu"}.get(says, says)
    if name not in GATED_ACTIVATIONS:
        raise HeadError(
            f"{described.where} says hidden_act is {says}",
            f"One of {', '.join(GATED_ACTIVATIONS)} was expected: neither vLLM's classes nor ours compute another",
            "Train the head with one of these",
        )
    return name


def _compare_base(intake: Intake, theta: float, target: Target) -> None:
    base = target.config.rope_parameters.get("rope_theta")
    intake.note(f"RoPE base {theta:g}" + (f"; the target's is {base:g}" if base and base != theta else ""))


def _heads(described: Described, q_rows: int, k_rows: int) -> tuple[int, int, int]:
    """Heads, key and value heads, and their width."""
    heads, head_dim = described.number("num_attention_heads"), described.number("head_dim")
    kv_heads = described.number("num_key_value_heads")
    if heads is None and head_dim is None:
        raise HeadError(
            "config.json does not say num_attention_heads",
            "How the attention splits into heads cannot be read from shapes",
            "Put the head's config.json beside its weights, or name it with --config",
        )
    heads = heads or max(1, q_rows // head_dim)
    head_dim = head_dim or max(1, q_rows // heads)
    if q_rows != heads * head_dim or k_rows % head_dim or kv_heads not in (None, k_rows // head_dim):
        said = "" if kv_heads is None else f", {kv_heads} of them for keys"
        raise HeadError(
            f"q_proj has {q_rows} rows and k_proj {k_rows}, which do not split into {heads} heads of {head_dim}{said}",
            "num_attention_heads x head_dim must give the rows of q_proj, num_key_value_heads x head_dim those of k_proj",
            "Correct config.json",
        )
    return heads, k_rows // head_dim, head_dim
