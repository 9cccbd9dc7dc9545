"""Faults that fit the demo's trained EAGLE-3 head, and what the doctor must answer to each."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import faults
from .faults import Damage, Saved, chunks, layers, says, stray

WIDTH, VOCAB, DRAFTS, DIM = 576, 49152, 8000, 64
_ATTENTION = "midlayer.self_attn"


@dataclass(frozen=True)
class Case:
    """What is done to the head, and the verdict: its options of `convert`, or a word of it where none help."""

    damages: list[Damage] = field(default_factory=list)
    flags: str = ""
    kind: str = "repairable"
    word: str = ""
    #: The options give back the sound head, bit by bit; not so where a part of it is lost.
    whole: bool = True


def _ids_for_offsets(head: Saved) -> None:
    head.tensors["d2t"] += torch.arange(DRAFTS)


def _offsets_twice(head: Saved) -> None:
    head.tensors["d2t"] -= torch.arange(DRAFTS)


def _without(name: str) -> Damage:
    def damage(head: Saved) -> None:
        del head.tensors[name]

    return damage


def _zeros(name: str) -> Damage:
    return lambda head: head.tensors[name].zero_()  # type: ignore[return-value]


def _renamed(old: str, new: str) -> Damage:
    def damage(head: Saved) -> None:
        head.tensors = {n.replace(old, new): t for n, t in head.tensors.items()}

    return damage


def _wide(head: Saved) -> None:
    head.tensors = {n: t.float() if t.is_floating_point() else t for n, t in head.tensors.items()}


_HEADS = "--set num_attention_heads=9 --set num_key_value_heads=3 --set head_dim=64"
_PLAIN_ROPE = """--set 'rope_parameters={"rope_type": "default", "rope_theta": 10000.0}'"""
SINGLE = {
    "layers one lower": Case([layers(1, 14, 26)], "--aux-ids 2,15,27"),
    "layers one higher": Case([layers(3, 16, 28)], "--aux-ids 2,15,27"),
    "layers of another run": Case([layers(8, 16, 24)], "--aux-ids 2,15,27"),
    "fc reads layers downwards": Case([chunks(2, 1, 0)], "--aux-ids 27,15,2"),
    "fc reads the last layer first": Case([chunks(2, 0, 1)], "--aux-ids 27,2,15"),
    "fc reads the first layer last": Case([chunks(1, 2, 0)], "--aux-ids 15,27,2"),
    "fc reads the first two in turn": Case([chunks(1, 0, 2)], "--aux-ids 15,2,27"),
    "fc reads the last two in turn": Case([chunks(0, 2, 1)], "--aux-ids 2,27,15"),
    "d2t of another run": Case([faults.other_d2t], "--d2t t2d"),
    "d2t never saved": Case([faults.d2t_never_saved], "--d2t t2d"),
    "d2t turned into offsets twice": Case([_offsets_twice], "--d2t t2d"),
    "norm before residual claimed": Case([says(norm_before_residual=True)], "--set norm_before_residual=false"),
    "feedback behind the norm claimed": Case([says(norm_output=True)], "--set feedback=pre_norm"),
    "RoPE base of a million claimed": Case([says(rope_theta=1000000.0)], "--rope-theta 10000"),
    "RoPE scaling claimed": Case([says(rope_scaling={"rope_type": "linear", "factor": 8.0})], _PLAIN_ROPE),
    "attention split otherwise": Case([says(num_attention_heads=18, num_key_value_heads=6, head_dim=32)], _HEADS),
    "stray fc bias": Case([stray("fc.bias", WIDTH, scale=5)], "--drop fc.bias"),
    "stray attention biases": Case(
        [stray(f"{_ATTENTION}.{n}_proj.bias", rows) for n, rows in (("q", WIDTH), ("k", 192), ("v", 192))],
        " ".join(f"--drop {_ATTENTION}.{n}_proj.bias" for n in "qkv"),
    ),
    "stray output bias": Case([stray(f"{_ATTENTION}.o_proj.bias", WIDTH)], f"--drop {_ATTENTION}.o_proj.bias"),
    "stray norms on q and k": Case(
        [stray(f"{_ATTENTION}.{n}_norm.weight", DIM) for n in "qk"],
        " ".join(f"--drop {_ATTENTION}.{n}_norm.weight" for n in "qk"),
    ),
    "stray norm before fc": Case([stray("input_norm.weight", 3 * WIDTH)], "--drop input_norm.weight"),
    "stray norms before fc": Case(
        [stray(f"fc_norm.{i}.weight", WIDTH) for i in range(3)],
        " ".join(f"--drop fc_norm.{i}.weight" for i in range(3)),
    ),
    "random embedding": Case([stray("embed_tokens.weight", VOCAB, WIDTH, scale=0.02)], "--drop embed_tokens.weight"),
    "lm_head never trained": Case(
        [stray("lm_head.weight", DRAFTS, WIDTH, scale=0.02)], "--drop lm_head.weight", whole=False
    ),
    "fc never trained": Case([faults.noise("fc.weight")], kind="beyond-repair", word="fc.weight"),
    "a matrix of zeros": Case(
        [_zeros("midlayer.mlp.up_proj.weight")], kind="beyond-repair", word="up_proj.weight is all zeros"
    ),
}  # fmt: skip
PAIRS = {
    "residual and feedback": Case(
        [says(norm_before_residual=True, norm_output=True)],
        "--set norm_before_residual=false --set feedback=pre_norm",
    ),
    "layers and vocabulary": Case([layers(1, 14, 26), faults.d2t_never_saved], "--aux-ids 2,15,27 --d2t t2d"),
    "order and feedback": Case(
        [chunks(2, 1, 0), says(norm_output=True)], "--aux-ids 27,15,2 --set feedback=pre_norm"
    ),
    "layers and fc bias": Case(
        [layers(3, 16, 28), stray("fc.bias", WIDTH, scale=5)], "--aux-ids 2,15,27 --drop fc.bias"
    ),
    "embedding and residual": Case(
        [stray("embed_tokens.weight", VOCAB, WIDTH, scale=0.02), says(norm_before_residual=True)],
        "--drop embed_tokens.weight --set norm_before_residual=false",
    ),
}  # fmt: skip
_SOUND = {"kind": "weak"}
SOUND = {
    "as shipped": Case(**_SOUND),
    "layers written down": Case([layers(2, 15, 27)], **_SOUND),
    "d2t holds ids": Case([_ids_for_offsets], **_SOUND),
    "without its mask": Case([_without("t2d")], **_SOUND),
    # A fault, but one that changes nothing within so short a text: drafts are as good with either base.
    "the target's RoPE base claimed": Case([says(rope_theta=100000.0)], **_SOUND),
    "in fp32, as layers.0": Case([_wide, _renamed("midlayer", "layers.0")], **_SOUND),
}
