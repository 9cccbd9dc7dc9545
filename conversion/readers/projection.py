"""Projection heads: `SiLU(W h + b)` and an lm_head of their own, as plain matrices.

`projection_weights` [P, H], `projection_bias` [P], `lm_head_weights` [V, P], in a .npz, .pt or .json.
"""

from __future__ import annotations

import torch

from ...configs import AttentionFreeConfig
from ...errors import HeadError
from ...targets.target import Target
from ..intake import Intake
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..source import Source
from .feature import token_pairing


def recognise(source: Source) -> Evidence | None:
    if source.has("projection_weights", "lm_head_weights"):
        return Evidence(["matrices projection_weights and lm_head_weights"], strength=3, names_trainer=False)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    intake = Intake(source)
    if token_pairing(source, options, "a projection head") == "same":
        raise HeadError(
            "this projection head predicts the token right behind its hidden state",
            "vLLM knows that token already; a draft head must predict the one after it",
            "Train it on pairs (hidden state of t, token t+2)",
        )
    width = intake.look("projection_weights", (None, target.hidden_size)).shape[0]
    rows = intake.look("lm_head_weights", (None, width)).shape[0]
    if rows > target.vocab_size:
        raise HeadError(
            f"lm_head_weights has {rows} rows, the target {target.vocab_size} tokens",
            "At most as many were expected",
            "Is this head for another target?",
        )
    intake.take("projection_weights", "body.input_projection.weight", change=_floating)
    intake.take("projection_bias", "body.input_projection.bias", (width,), change=_floating)
    intake.take("lm_head_weights", "lm_head.weight", change=_floating)
    if rows < target.vocab_size:
        intake.note(f"lm_head_weights has {rows} rows: the head drafts the first {rows} of {target.vocab_size} tokens")
        intake.put("d2t", torch.zeros(rows, dtype=torch.long))
    if width != target.hidden_size:
        intake.note(f"its output is {width} wide and cannot be fed back: one drafted token at most")
    config = AttentionFreeConfig(
        vocab_size=target.vocab_size,
        draft_vocab_size=rows,
        hidden_size=target.hidden_size,
        use_embedding=False,
        input_projection=width,
        input_activation="silu",
        own_lm_head=True,
    )
    return Reading.of(config, intake)


def _floating(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor


READERS = (
    Reader(
        "projection",
        "SiLU projection of the hidden state with an own lm_head, as plain matrices",
        recognise,
        read,
        ("token_pairing",),
    ),
)
