"""The lm_head of EAGLE-3 heads: their own, the target's, or their embedding under another name."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from ..errors import HeadError
from ..targets.target import Target
from .described import Described
from .intake import Intake
from .missing import given_up
from .options import Options
from .values import same_weights
from .vocabulary import take_vocabulary


class LmHead(Enum):
    """Where a producer's heads have their lm_head from, if it is not in their files."""

    #: It is always there.
    OWN = "own"
    #: Heads over the whole vocabulary may use the target's.
    BORROWED = "borrowed"
    #: transformers saves these heads, and leaves it out where it is tied to their embedding.
    TIED = "tied"


def take_lm_head(
    intake: Intake, top: Described, options: Options, target: Target, width: int, kind: LmHead
) -> dict[str, Any]:
    """Flags of the lm_head, its own, tied to its embedding, or the target's, and of the draft vocabulary."""
    if "lm_head.weight" not in intake:
        return _missing(intake, top, options, target, width, kind)
    lm_head = intake.look("lm_head.weight", (None, width))
    rows = lm_head.shape[0]
    if top.get("draft_vocab_size", rows) != rows:
        intake.note(f"config.json says draft_vocab_size {top.get('draft_vocab_size')}; lm_head has {rows}, used")
    if rows == target.vocab_size and same_weights(lm_head, target.lm_head):
        intake.drop("lm_head.weight", "equal to the target's lm_head, which is used instead")
        take_vocabulary(intake, options, target, rows)
        return {"own_lm_head": False}
    intake.take("lm_head.weight")
    take_vocabulary(intake, options, target, rows)
    return {"own_lm_head": True, "draft_vocab_size": rows}


def _missing(
    intake: Intake, top: Described, options: Options, target: Target, width: int, kind: LmHead
) -> dict[str, Any]:
    dropped = given_up(intake.source, "lm_head.weight")
    tied = kind is not LmHead.BORROWED and top.flag("tie_word_embeddings")
    if tied and not dropped and intake.source.has("embed_tokens.weight"):
        return _tied(intake, options, target, kind)
    rows = intake.look("d2t").shape[0] if "d2t" in intake else target.vocab_size
    if rows != target.vocab_size and width == target.hidden_size and dropped:
        take_vocabulary(intake, options, target, rows)
        ids = torch.arange(rows) + intake.taken["d2t"].load()
        intake.put("lm_head.weight", target.lm_head.load()[ids].clone())
        intake.note(f"lm_head cut from the target's for the {rows} draft tokens")
        return {"own_lm_head": True, "draft_vocab_size": rows}
    if rows != target.vocab_size or width != target.hidden_size:
        raise HeadError(
            f"lm_head.weight is missing, and the head drafts {rows} tokens from {width} wide states",
            "Only a head over the whole vocabulary, as wide as its target, can use the target's lm_head",
            "Export it with lm_head.weight",
        )
    if not (kind is LmHead.BORROWED or dropped):
        raise HeadError(
            "lm_head.weight is missing",
            "Heads of this producer have an lm_head of their own, whatever their vocabulary",
            "Export the head again, whole; if it was trained with the target's lm_head, save a copy of it there",
        )
    intake.note("drafts with the target's lm_head")
    take_vocabulary(intake, options, target, rows)
    return {"own_lm_head": False}


def _tied(intake: Intake, options: Options, target: Target, kind: LmHead) -> dict[str, Any]:
    """The lm_head that transformers leaves out of a file, because it is the head's embedding."""
    if kind is not LmHead.TIED:
        raise HeadError(
            "lm_head.weight is missing, and config.json says tie_word_embeddings is true",
            "transformers leaves out an lm_head that is the head's own embed_tokens; this producer's heads have one of their own",
            "If the two are one, save embed_tokens.weight under lm_head.weight too; otherwise export the head again, whole",
        )
    take_vocabulary(intake, options, target, target.vocab_size)
    intake.note(
        "tie_word_embeddings is true and lm_head.weight is not there: the lm_head is the head's own embed_tokens"
    )
    table = intake.taken.get("embed_tokens.weight", target.embedding)
    if "embed_tokens.weight" not in intake.taken and same_weights(target.embedding, target.lm_head):
        return {"own_lm_head": False}
    intake.taken["lm_head.weight"] = table
    return {"own_lm_head": True, "draft_vocab_size": target.vocab_size}
