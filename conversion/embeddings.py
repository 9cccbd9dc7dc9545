"""A head's own embedding and lm_head: kept where they differ from the target's, refused where they are noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HeadError
from ..targets.stored import Stored
from ..targets.target import Target
from .intake import Intake
from .values import mean_cosine, same_weights

#: Rows of unrelated tables have cosines around 0; tables trained together stay far from it.
_UNRELATED = 0.05
_PRECISION_COPY = 0.999
#: Difference of products of rows, against their size, that half precision can make.
_SAME_PRODUCTS = 0.05


def take_embedding(intake: Intake, name: str, target: Target, width: int) -> bool:
    """The head's own embedding [V, width]; False where it has none or only a copy of the target's.

    A table shorter than the vocabulary (made for `len(tokenizer)` tokens) is filled up with zeros:
    no text has the tokens in question.
    """
    if name not in intake:
        return False
    table, known, vocab = intake.look(name, (None, width)), target.embedding, target.vocab_size
    rows = table.shape[0]
    if known.shape[1] == width:
        if same_weights(table, known, min(rows, vocab)):
            intake.drop(name, "equal to the target's embedding, which is used instead")
            return False
        _check_related(intake, name, table, known)
    if rows == vocab:
        intake.take(name, "embed_tokens.weight")
        return True
    done = f"cut to the target's {vocab}" if rows > vocab else f"filled with zeros to the target's {vocab}"
    intake.note(f"{name} has {rows} rows, {done}")
    intake.take(name, "embed_tokens.weight", change=lambda t: _with_rows(t, vocab))
    return True


def need_embedding(intake: Intake, target: Target, width: int) -> None:
    """Refuse a head of another width than its target that does not bring an embedding."""
    if "embed_tokens.weight" not in intake.taken and width != target.hidden_size:
        raise HeadError(
            f"the head is {width} wide, the target's embedding {target.hidden_size}, and embed_tokens is missing",
            "A head as wide as its target was expected, or one that brings its own embedding",
            "Is this head for another target? Otherwise export it with embed_tokens.weight",
        )


def take_lm_head(intake: Intake, name: str, target: Target, width: int, bias_name: str | None = None) -> dict[str, Any]:
    """Flags of the head's lm_head; empty where it has none or a copy of the target's.

    An lm_head of fewer rows than the vocabulary drafts its first tokens.
    """
    if name not in intake:
        return {}
    weight, known, vocab = intake.look(name, (None, width)), target.lm_head, target.vocab_size
    rows = min(weight.shape[0], vocab)
    bias = bias_name if bias_name and bias_name in intake else None
    if bias is None and known.shape[1] == width and same_weights(weight, known, rows):
        intake.drop(name, "equal to the target's lm_head, which is used instead")
        return {}
    cut = None if rows == weight.shape[0] else lambda t: t[:rows]
    intake.take(name, "lm_head.weight", change=cut)
    flags: dict[str, Any] = {"own_lm_head": True}
    if bias is not None:
        intake.take(bias, "lm_head.bias", (None,), change=cut)
        flags["lm_head_bias"] = True
    if rows < vocab:
        intake.note(f"{name} has {rows} rows: the head drafts the first {rows} of {vocab} tokens")
        intake.put("d2t", torch.zeros(rows, dtype=torch.long))
        flags["draft_vocab_size"] = rows
    return flags


def _check_related(intake: Intake, name: str, own: Stored, target: Stored) -> None:
    """Refuse an embedding that has nothing to do with the target's: exporters have shipped random ones."""
    cosine = mean_cosine(own, target)
    if not abs(cosine) >= _UNRELATED and _rotated(own, target):
        raise HeadError(
            f"{name} is the target's embedding in another basis: rows have other directions (mean cosine {cosine:.3f}) and "
            "the same products with each other",
            "The target was rotated after the head was trained, as QuaRot and SpinQuant do before they quantise: whatever "
            "the head reads of it is turned",
            "Convert it for the target as it was before, and serve that one, or train a head on the rotated one",
        )
    if not abs(cosine) >= _UNRELATED:
        raise HeadError(
            f"{name} has nothing in common with the target's embedding (mean cosine {cosine:.3f})",
            "Heads are trained on the target's embedding, so it was probably never initialised, or is another model's",
            f"Use the target's embedding with --drop {name}, or convert for the right target",
        )
    if cosine > _PRECISION_COPY:
        intake.note(f"{name} is the target's embedding in another precision (mean cosine {cosine:.5f}); kept")


def _rotated(own: Stored, target: Stored, samples: int = 256) -> bool:
    """Whether rows of two tables have the same products with each other: one is the other, turned."""
    rows = torch.linspace(0, min(own.shape[0], target.shape[0]) - 1, samples).long().unique()
    one, other = (table.gather(rows).float() for table in (own, target))
    products, theirs = one @ one.T, other @ other.T
    return float((products - theirs).norm()) < _SAME_PRODUCTS * float(theirs.norm())


def _with_rows(table: Tensor, rows: int) -> Tensor:
    if table.shape[0] >= rows:
        return table[:rows]
    return torch.cat((table, table.new_zeros(rows - table.shape[0], table.shape[1])))
