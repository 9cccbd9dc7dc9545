"""Other ways to read a head: each is a set of options that `convert` takes, so what is measured can be had."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...configs import AttentionFreeConfig, Eagle3Config, EagleConfig, HeadConfig, TransformerHeadConfig
from ...targets.target import Target
from ..aux_layers import default_layers
from ..options import Options
from ..reading import Reader, Reading
from ..source import Source
from . import known

#: RoPE bases that heads have been trained with whatever their configs said.
_THETAS = (10000.0, 500000.0, 1000000.0)
_D2T = {
    "offset": "d2t holds offsets",
    "absolute": "d2t holds ids",
    "t2d": "drafts the tokens that t2d marks",
    "identity": "drafts the first tokens",
}
_HEAD_DIMS = (64, 128, 96, 80, 256, 32)


@dataclass(frozen=True)
class Change:
    """One assumption read differently."""

    #: What the change is about: changes of one family exclude each other.
    family: str
    says: str
    options: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    #: Which stream stands for the target's last hidden state: `last`, or one that vLLM does not hand over.
    reads: str = "last"
    #: Public threads about this fault.
    threads: str = ""

    def of(self, base: Options) -> Options:
        """`base` with this change."""
        drop = base.drop + tuple(name for name in self.drop if name not in base.drop)
        return replace(base, **self.options, drop=drop, flags={**base.flags, **self.flags})


def alternatives(source: Source, target: Target, reader: Reader, reading: Reading, options: Options) -> list[Change]:
    """Every change of `reading` that may fit the shapes, cheap and frequent faults first."""
    config = reading.config
    found: list[Change] = []
    if isinstance(config, Eagle3Config) and config.use_aux_hidden_state:
        found += _aux_layers(config, target, options)
    if isinstance(config, TransformerHeadConfig):
        found += [*_norms(config, reading), *_rope(config, source, target), *_biases(config, reading)]
    if isinstance(config, AttentionFreeConfig) and config.use_hidden and config.use_embedding:
        for pairing in {"next", "same"} - {config.token_pairing}:
            says = f"trained on the {'next' if pairing == 'next' else 'same'} token"
            found.append(Change("token pairing", says, {"token_pairing": pairing}))
    if isinstance(config, EagleConfig | AttentionFreeConfig):
        orders = ("embed-hidden", "hidden-embed")
        found += [Change("fc columns", f"columns [{o.replace('-', ', ')}]", {"fc_order": o}) for o in orders]
    found += [*_vocabulary(config), *_tables(config, reading, target), *_last_state(config, target)]
    if isinstance(config, TransformerHeadConfig):
        found += _attention_split(config, reading, target)
    return [c for c in found if all(name in reader.options for name in c.options)]


def resolutions(source: Source, target: Target) -> list[Change]:
    """What may settle a question that a reader refuses to guess, whatever the head is."""
    found = [Change("layer count", f"layer ids count {w}", {"aux_ids_convention": c}, threads=known.AUX_COUNT)
             for c, w in (("boundary", "streams"), ("output", "outputs"))]  # fmt: skip
    found += [Change("token pairing", f"trained on the {p} token", {"token_pairing": p}) for p in ("next", "same")]
    found += [Change("draft vocabulary", _D2T[k], {"d2t": k}, threads=known.D2T) for k in _D2T]
    found += [Change("RoPE base", f"RoPE base {t:g}", {"rope_theta": t}, threads=known.ROPE)
              for t in _thetas(source, target)]  # fmt: skip
    ids = default_layers(target.num_layers)
    found.append(Change("layers", f"layers {_listed(ids)}", {"aux_ids": tuple(ids)}, threads=known.AUX_MISSING))
    for name in ("embed_tokens.weight", "embeddings.weight", "lm_head.weight"):
        if name in source.tensors:
            stored = source.stored_names.get(name, name)
            found.append(Change("tables", f"the target's instead of {stored}", drop=(stored,), threads=known.TABLES))
    return found


def _aux_layers(config: Eagle3Config, target: Target, options: Options) -> Iterator[Change]:
    ids, depth = list(config.eagle_aux_hidden_state_layer_ids or ()), target.num_layers
    order = list(options.aux_ids or ids)
    if sorted(order) != ids:  # counted as outputs
        order = [i + 1 for i in order]
    shapes: dict[str, tuple[list[int], str]] = {
        "one higher": ([i + 1 for i in order], known.AUX_COUNT),
        "one lower": ([i - 1 for i in order], known.AUX_COUNT),
        "the default": (default_layers(depth), known.AUX_MISSING),
        "one below the default": ([i - 1 for i in default_layers(depth)], known.AUX_COUNT),
    }
    for says, (layers, threads) in shapes.items():
        if len(set(layers)) == len(ids) and min(layers) >= 0 and max(layers) <= depth:
            yield Change("layers", f"layers {_listed(layers)} ({says})", _as_ids(layers), threads=threads)
    orders = list(itertools.permutations(order)) if len(order) < 4 else [tuple(reversed(order))]
    for turned in orders:
        if list(turned) != order:
            yield Change("layer order", f"fc reads layers {_listed(turned)} in this order", _as_ids(turned))


def _as_ids(layers: Any) -> dict[str, Any]:
    return {"aux_ids": tuple(layers), "aux_ids_convention": None}


def _norms(config: TransformerHeadConfig, reading: Reading) -> Iterator[Change]:
    if isinstance(config, Eagle3Config):
        behind = not config.norm_before_residual
        yield Change("residual", f"residual starts {'behind' if behind else 'before'} hidden_norm",
                     flags={"norm_before_residual": behind}, threads=known.NORM_FLAGS)  # fmt: skip
    if config.output_norm:
        other = "pre_norm" if config.feedback == "post_norm" else "post_norm"
        yield Change("feedback", f"fed back {'behind' if other == 'post_norm' else 'before'} the final norm",
                     flags={"feedback": other}, threads=known.FEEDBACK)  # fmt: skip
    for ours, says in (
        ("norm.weight", "no final norm"),
        ("input_norm.weight", "no norm before fc"),
        ("fc_norm.", "no norms before fc"),
        ("embed_norm.weight", "no norm on the embedding"),
        ("hidden_norm.weight", "no norm on the hidden state"),
        ("layers.0.input_layernorm.weight", "no input norm"),
        ("layers.0.hidden_norm.weight", "no norm on the fused state"),
    ):
        if stored := _stored(reading, ours):
            more = {"feedback": "pre_norm"} if ours == "norm.weight" and config.feedback == "post_norm" else {}
            yield Change(f"norm {ours}", says, drop=stored, flags=more, threads=known.NORMS)


def _biases(config: TransformerHeadConfig, reading: Reading) -> Iterator[Change]:
    if stored := _stored(reading, "fc.bias"):
        yield Change("fc bias", "no fc bias", drop=stored, threads=known.FC_BIAS)
    attention = [n for n in reading.used.values() if ".self_attn." in n]
    for says, ends in (
        ("no attention biases", ("q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias")),
        ("no output bias in attention", ("o_proj.bias",)),
        ("no norms on q and k", ("q_norm.weight", "k_norm.weight")),
    ):
        ours = [n for n in attention if n.endswith(ends)]
        if ours and not (says == "no attention biases" and all(n.endswith("o_proj.bias") for n in ours)):
            drop = tuple(name for n in ours for name in _stored(reading, n))
            yield Change(f"attention {ends[-1]}", says, drop=drop, threads=known.BIASES)


def _rope(config: TransformerHeadConfig, source: Source, target: Target) -> Iterator[Change]:
    rope = dict(config.rope_parameters or {})
    for theta in _thetas(source, target):
        if theta != rope.get("rope_theta"):
            yield Change("RoPE base", f"RoPE base {theta:g}", {"rope_theta": theta}, threads=known.ROPE)
    plain = {"rope_type": "default", "rope_theta": rope.get("rope_theta")}
    theirs = target.config.rope_parameters
    if rope.get("rope_type") != "default":
        yield Change("RoPE scaling", "RoPE without scaling", flags={"rope_parameters": plain}, threads=known.ROPE)
    elif theirs.get("rope_type", "default") != "default":
        yield Change("RoPE scaling", "the target's RoPE", flags={"rope_parameters": theirs}, threads=known.ROPE)


def _thetas(source: Source, target: Target) -> list[float]:
    theirs = target.config.rope_parameters
    says = [source.config.get("rope_theta"), theirs.get("rope_theta")]
    nested = source.config.get("rope_parameters")
    says.append(nested.get("rope_theta") if isinstance(nested, dict) else None)
    numbers = [float(v) for v in says if isinstance(v, int | float) and not isinstance(v, bool)]
    return list(dict.fromkeys((*(n for n in numbers if math.isfinite(n) and n > 0), *_THETAS)))


def _vocabulary(config: HeadConfig) -> Iterator[Change]:
    if config.reduced_vocab:
        for kind, says in _D2T.items():
            yield Change("draft vocabulary", says, {"d2t": kind}, threads=known.D2T)


def _tables(config: HeadConfig, reading: Reading, target: Target) -> Iterator[Change]:
    if stored := _stored(reading, "embed_tokens.weight"):
        yield Change("embedding", "the target's embedding", drop=stored, threads=known.TABLES)
    if stored := (*_stored(reading, "lm_head.weight"), *_stored(reading, "lm_head.bias")):
        yield Change("lm_head", "the target's lm_head", drop=stored, threads=known.LM_HEAD)
    if stored := _stored(reading, "lm_head.bias"):
        yield Change("lm_head bias", "no lm_head bias", drop=stored)
    if target.config.embed_scale != 1.0:
        scale = target.config.embed_scale if config.embed_scale == 1.0 else 1.0
        yield Change("embedding scale", f"embeddings times {scale:g}", flags={"embed_scale": scale})


def _last_state(config: HeadConfig, target: Target) -> Iterator[Change]:
    """Streams that heads were trained on by mistake, and that vLLM hands over to none."""
    if isinstance(config, Eagle3Config) and config.use_aux_hidden_state:
        if target.num_layers in (config.eagle_aux_hidden_state_layer_ids or ()):
            yield Change("last state", "the last layer behind the target's final norm", reads="behind_norm")
    elif getattr(config, "use_hidden", True):
        yield Change("last state", "the hidden state before the target's final norm", reads="before_norm")


def _attention_split(config: TransformerHeadConfig, reading: Reading, target: Target) -> Iterator[Change]:
    q, k = (reading.tensors[f"layers.0.self_attn.{n}_proj.weight"].shape[0] for n in "qk")
    theirs = target.config.head_dim or 0
    if config.qk_norm:  # their width is the head's
        return
    for dim in dict.fromkeys((theirs, *_HEAD_DIMS)):
        if dim and dim != config.head_dim and q % dim == 0 and k % dim == 0 and (q // dim) % (k // dim) == 0:
            yield Change("attention heads", f"{q // dim} heads of {dim}",
                         flags={"num_attention_heads": q // dim, "num_key_value_heads": k // dim, "head_dim": dim})  # fmt: skip


def _stored(reading: Reading, ours: str) -> tuple[str, ...]:
    """Names in the head's files of what became our tensors of this name, or that start so."""
    return tuple(n for n, o in reading.used.items() if o == ours or (ours.endswith(".") and o.startswith(ours)))


def _listed(layers: Any) -> str:
    return ", ".join(map(str, layers))
