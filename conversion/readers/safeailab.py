"""SafeAILab EAGLE-1/2 heads (`yuhuili/EAGLE-*` and what eagle/train writes).

`fc`, `layers.i`, perhaps `embed_tokens`; no norm in front of layer 0 and none behind the last. The
config's `bias` is meant for fc and often wrong, so the tensors decide.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...configs import EagleConfig
from ...errors import HeadError
from ..options import Options
from ..reading import Reader, Reading, Tensors, own_lm_head, take_embedding
from ..source import Source
from ..target import Target

DEFAULT_THETA = 10000.0
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def recognise(source: Source) -> list[str]:
    names = source.tensors
    if "fc.weight" in names and "layers.0.self_attn.q_proj.weight" in names:
        fc, q = names["fc.weight"], names["layers.0.self_attn.q_proj.weight"]
        if fc.dim() == 2 and q.dim() == 2 and fc.shape[1] == 2 * fc.shape[0] and q.shape[1] == fc.shape[0]:
            return ["tensors fc.* and layers.0.*", "fc reads [embed, hidden] of one width", "layer 0 is not widened"]
    return []


def read(source: Source, target: Target, options: Options) -> Reading:
    tensors, notes = Tensors(source.tensors), []
    hidden = target.hidden_size
    taken: dict[str, Tensor] = {"fc.weight": tensors.take("fc.weight", (hidden, 2 * hidden))}
    fc_bias = tensors.take_if("fc.bias", (hidden,))
    if fc_bias is not None:
        taken["fc.bias"] = fc_bias
    if source.described("bias", fc_bias is not None) != (fc_bias is not None):
        notes.append(
            f"config.json says bias {source.described('bias')}, but fc.bias is "
            f"{'there' if fc_bias is not None else 'not there'}: the tensors decide"
        )
    layers = 0
    while f"layers.{layers}.self_attn.q_proj.weight" in tensors:
        take_layer(tensors, taken, f"layers.{layers}", f"layers.{layers}", input_norm=layers > 0)
        layers += 1
    if source.described("num_hidden_layers", layers) != layers:
        notes.append(
            f"config.json says {source.described('num_hidden_layers')} layers; the tensors have {layers}, used"
        )
    embedding = take_embedding(notes, tensors, "embed_tokens.weight", target, hidden)
    if embedding is not None:
        taken["embed_tokens.weight"] = embedding
    head, flags = own_lm_head(notes, tensors, "lm_head.weight", target, hidden)
    tensors.finish()
    config = EagleConfig(
        vocab_size=target.vocab_size,
        fc_bias=fc_bias is not None,
        own_embedding=embedding is not None,
        **decoder_flags(source, options, taken, target, hidden, notes),
        num_hidden_layers=layers,
        **flags,
    )
    return Reading(config, taken | head, tensors.dropped, notes)


def take_layer(tensors: Tensors, taken: dict[str, Tensor], theirs: str, ours: str, input_norm: bool) -> None:
    """Move one Llama-style layer over, with whatever biases it has."""
    tensors.drop(f"{theirs}.self_attn.rotary_emb.inv_freq", "computed from rope_theta")
    for name in _PROJECTIONS:
        taken[f"{ours}.self_attn.{name}.weight"] = tensors.take(f"{theirs}.self_attn.{name}.weight", (None, None))
        if (bias := tensors.take_if(f"{theirs}.self_attn.{name}.bias")) is not None:
            taken[f"{ours}.self_attn.{name}.bias"] = bias
    for name in ("gate_proj", "up_proj", "down_proj"):
        taken[f"{ours}.mlp.{name}.weight"] = tensors.take(f"{theirs}.mlp.{name}.weight", (None, None))
    for name in (["input_layernorm"] if input_norm else []) + ["post_attention_layernorm"]:
        taken[f"{ours}.{name}.weight"] = tensors.take(f"{theirs}.{name}.weight")


def decoder_flags(
    source: Source, options: Options, taken: dict[str, Tensor], target: Target, width: int, notes: list[str]
) -> dict[str, Any]:
    """Flags of the decoder layers. Shapes say all but how q and k/v split into heads."""
    heads = source.number("num_attention_heads")
    if heads is None:
        raise HeadError(
            "config.json does not say num_attention_heads",
            "How the attention splits into heads cannot be read from shapes",
            "Put the head's config.json beside its weights",
        )
    q, k = (taken[f"layers.0.self_attn.{name}.weight"] for name in ("q_proj", "k_proj"))
    head_dim = source.number("head_dim") or max(1, q.shape[0] // heads)
    if q.shape[0] != heads * head_dim or k.shape[0] % head_dim:
        raise HeadError(
            f"q_proj has {q.shape[0]} rows and k_proj {k.shape[0]}, which do not split into {heads} heads of {head_dim}",
            "num_attention_heads x head_dim must give the rows of q_proj",
            "Correct config.json",
        )
    kv_heads = k.shape[0] // head_dim
    described_kv = source.described("num_key_value_heads")
    if described_kv not in (None, kv_heads):
        notes.append(f"config.json says {described_kv} kv heads; k_proj has {kv_heads}, used")
    theta = options.rope_theta
    if theta is None:
        theta = source.number("rope_theta", float)
    if theta is None:
        theta = source.number("rope_theta", float, inside="rope_parameters")
    if theta is None:
        theta = DEFAULT_THETA
        notes.append(f"config.json has no rope_theta: {DEFAULT_THETA:g}, this producer's default")
    rope = {"rope_type": "default", "rope_theta": float(theta)}
    scaling = source.object("rope_scaling")
    if scaling:
        rope |= {("rope_type" if key == "type" else key): value for key, value in scaling.items()}
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": taken["layers.0.mlp.gate_proj.weight"].shape[0],
        "rms_norm_eps": source.number("rms_norm_eps", float) or 1e-6,
        "max_position_embeddings": max(
            source.number("max_position_embeddings") or 0, getattr(target.config, "max_position_embeddings", 0) or 2048
        ),
        "rope_parameters": rope,
        "qkv_bias": "layers.0.self_attn.q_proj.bias" in taken,
        "o_bias": "layers.0.self_attn.o_proj.bias" in taken,
    }


READER = Reader("safeailab-eagle", "SafeAILab EAGLE-1/2 (fc, layers.i)", recognise, read, ("rope_theta",))
