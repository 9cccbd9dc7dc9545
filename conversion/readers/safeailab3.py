"""SafeAILab EAGLE-3 heads (`yuhuili/EAGLE3-*` and layouts that follow them).

One `midlayer` over [embed, fused hidden], `fc` over three layers of the target, `norm`, `lm_head` over a
reduced vocabulary with `d2t` offsets and the `t2d` mask; usually no embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...configs import Eagle3Config
from ...errors import HeadError
from ..options import Options
from ..reading import Reader, Reading, Tensors, take_embedding
from ..source import Source
from ..target import Target
from .safeailab import decoder_flags, take_layer


def recognise(source: Source) -> list[str]:
    if "fc.weight" in source.tensors and "midlayer.self_attn.q_proj.weight" in source.tensors:
        return ["tensors fc.weight and midlayer.*"]
    return []


def read(source: Source, target: Target, options: Options) -> Reading:
    tensors, notes = Tensors(source.tensors), []
    fc = tensors.take("fc.weight", (None, None))
    width, fused = fc.shape[0], fc.shape[1]
    if fused != 3 * target.hidden_size:
        raise HeadError(
            f"fc.weight is {list(fc.shape)} but this target's hidden size is {target.hidden_size}",
            f"[{width}, {3 * target.hidden_size}] was expected: three layers of the target side by side",
            "Is this head for another target?",
        )
    taken: dict[str, Tensor] = {"fc.weight": fc}
    take_layer(tensors, taken, "midlayer", "layers.0", input_norm=True)
    taken["layers.0.hidden_norm.weight"] = tensors.take("midlayer.hidden_norm.weight", (width,))
    taken["norm.weight"] = tensors.take("norm.weight", (width,))
    if source.described("num_hidden_layers", 1) != 1:
        notes.append(f"config.json says {source.described('num_hidden_layers')} layers; an EAGLE-3 head has one")
    embedding = take_embedding(notes, tensors, "embed_tokens.weight", target, width)
    if embedding is None and width != target.hidden_size:
        raise HeadError(
            f"the head is {width} wide, the target's embedding {target.hidden_size}, and embed_tokens is missing",
            "A head of another width brings its own embedding",
            "Export it with embed_tokens.weight",
        )
    if embedding is not None:
        taken["embed_tokens.weight"] = embedding
    lm_head = tensors.take("lm_head.weight", (None, width))
    rows = lm_head.shape[0]
    if rows > target.vocab_size:
        raise HeadError(
            f"lm_head.weight has {rows} rows, the target {target.vocab_size} tokens",
            "At most as many were expected",
            "Is this head for another target?",
        )
    taken["lm_head.weight"] = lm_head
    if source.described("draft_vocab_size", rows) != rows:
        notes.append(
            f"config.json says draft_vocab_size {source.described('draft_vocab_size')}; lm_head has {rows}, used"
        )
    if rows == target.vocab_size:
        for name in ("d2t", "t2d"):
            tensors.drop(name, "the head drafts from the whole vocabulary")
    else:
        taken["d2t"] = offsets(tensors, rows, target.vocab_size, notes)
    tensors.finish()
    layers = target.num_layers
    ids = source.described("eagle_aux_hidden_state_layer_ids") or [2, layers // 2, layers - 3]
    if not isinstance(ids, list) or any(type(i) is not int or not 0 <= i <= layers for i in ids):
        raise HeadError(
            f"eagle_aux_hidden_state_layer_ids is {ids!r} in config.json",
            f"A list of layers of the target was expected; it has {layers} layers",
            "Is this head for another target?",
        )
    notes.append(f"reads the target behind layers {', '.join(map(str, ids))} of {layers}")
    config = Eagle3Config(
        vocab_size=target.vocab_size,
        draft_vocab_size=rows,
        target_hidden_size=target.hidden_size,
        eagle_aux_hidden_state_layer_ids=ids,
        own_embedding=embedding is not None,
        own_lm_head=True,
        **decoder_flags(source, options, taken, target, width, notes),
    )
    return Reading(config, taken, tensors.dropped, notes)


def offsets(tensors: Tensors, rows: int, vocab: int, notes: list[str]) -> Tensor:
    """`d2t` as offsets, whichever way it is stored; `t2d` is checked against it and dropped."""
    stored = tensors.take("d2t", (rows,))
    if stored.dtype not in (torch.int64, torch.int32, torch.int16):
        raise HeadError(f"d2t is {str(stored.dtype).removeprefix('torch.')}", "Integers were expected")
    d2t = stored.long()
    base = torch.arange(rows)
    ids = base + d2t
    t2d = tensors.take_if("t2d", (vocab,))
    if t2d is not None:
        tensors.dropped["t2d"] = "follows from d2t"
        listed = t2d.nonzero().flatten()
        if torch.equal(listed, d2t):
            notes.append("d2t holds absolute ids (t2d says so); turned into offsets")
            return d2t - base
        if not torch.equal(listed, ids.sort().values):
            raise HeadError(
                f"t2d marks {len(listed)} tokens, d2t maps to {len(ids.unique())}, and they differ",
                "Both must describe the same draft vocabulary",
                "Export both from one run",
            )
    elif int(ids.max()) >= vocab and int(d2t.max()) < vocab and bool((d2t.diff() > 0).all()):
        notes.append("d2t holds absolute ids (as offsets they leave the vocabulary); turned into offsets")
        return d2t - base
    if ids.min() < 0 or ids.max() >= vocab or len(ids.unique()) != rows:
        raise HeadError(
            f"d2t maps {rows} draft tokens to {len(ids.unique())} ids from {int(ids.min())} to {int(ids.max())}",
            f"Offsets were expected: i + d2t[i] distinct and below {vocab}",
            "Was it saved before the vocabulary was mapped?",
        )
    return d2t


READER = Reader("safeailab-eagle3", "SafeAILab EAGLE-3 (midlayer, fc, d2t)", recognise, read, ("rope_theta",))
