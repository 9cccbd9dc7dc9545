"""Projection heads: `SiLU(W h + b)` and an lm_head of their own, as plain matrices.

`projection_weights` [P, H], `projection_bias` [P], `lm_head_weights` [V, P], in a .npz, .pt or .json.
"""

from __future__ import annotations

import torch

from ...configs import AttentionFreeConfig
from ...errors import HeadError
from ..options import Options
from ..reading import Reader, Reading, Tensors
from ..source import Source
from ..target import Target
from .feature import token_pairing


def recognise(source: Source) -> list[str]:
    if "projection_weights" in source.tensors and "lm_head_weights" in source.tensors:
        return ["matrices projection_weights and lm_head_weights"]
    return []


def read(source: Source, target: Target, options: Options) -> Reading:
    tensors, notes = Tensors(source.tensors), []
    if token_pairing(source, options, "a projection head") == "same":
        raise HeadError(
            "this projection head predicts the token right behind its hidden state",
            "vLLM knows that token already; a draft head must predict the one after it",
            "Train it on pairs (hidden state of t, token t+2)",
        )
    weight = tensors.take("projection_weights", (None, target.hidden_size))
    width = weight.shape[0]
    lm_head = tensors.take("lm_head_weights", (None, width))
    rows = lm_head.shape[0]
    if rows > target.vocab_size:
        raise HeadError(
            f"lm_head_weights has {rows} rows, the target {target.vocab_size} tokens",
            "At most as many were expected",
            "Is this head for another target?",
        )
    taken = {
        "body.input_projection.weight": _floating(weight),
        "body.input_projection.bias": _floating(tensors.take("projection_bias", (width,))),
        "lm_head.weight": _floating(lm_head),
    }
    if rows < target.vocab_size:
        notes.append(f"lm_head_weights has {rows} rows: the head drafts the first {rows} of {target.vocab_size} tokens")
        taken["d2t"] = torch.zeros(rows, dtype=torch.long)
    if width != target.hidden_size:
        notes.append(f"its output is {width} wide and cannot be fed back: one drafted token at most")
    tensors.finish()
    config = AttentionFreeConfig(
        vocab_size=target.vocab_size,
        draft_vocab_size=rows,
        hidden_size=target.hidden_size,
        use_embedding=False,
        input_projection=width,
        input_activation="silu",
        own_lm_head=True,
    )
    return Reading(config, taken, tensors.dropped, notes)


def _floating(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor


READER = Reader(
    "projection",
    "SiLU projection of the hidden state with an own lm_head, as plain matrices",
    recognise,
    read,
    ("token_pairing",),
)
