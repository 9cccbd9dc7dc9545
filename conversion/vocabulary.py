"""A reduced draft vocabulary: `d2t` as offsets (draft id i is target id i + d2t[i]), however it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..errors import HeadError
from ..targets.stored import Stored
from ..targets.target import Target
from .intake import Intake
from .options import Options
from .values import mean_cosine

_INTEGERS = (torch.int64, torch.int32, torch.int16)
#: Names for lists of absolute ids in side files and state dicts.
ABSOLUTE_LISTS = ("selected_token_ids", "token_map", "hot_token_ids", "hot_token_id")


class Kind(Enum):
    """Where a draft vocabulary is from."""

    #: The head's own `d2t`.
    STORED = "stored"
    #: A `d2t` in a file beside the weights.
    BESIDE = "beside"
    #: A list of absolute ids beside the weights.
    LIST = "list"
    #: What the user says.
    TOLD = "told"


@dataclass(frozen=True)
class Mapping:
    """The table of a draft vocabulary [Vd], and where it is from."""

    table: Tensor
    kind: Kind
    where: str = "d2t"


def take_vocabulary(intake: Intake, options: Options, target: Target, rows: int) -> None:
    """Put `d2t` for an lm_head of `rows` rows, or leave it out where it drafts from the whole vocabulary."""
    vocab = target.vocab_size
    if rows > vocab:
        raise HeadError(
            f"lm_head.weight has {rows} rows, the target {vocab} tokens",
            "At most as many were expected",
            "Is this head for another target?",
        )
    if rows == vocab:
        _whole(intake, rows)
        return
    if options.d2t in ("identity", "t2d"):
        ids = _told(intake, options.d2t, rows)
        found = Mapping(ids, Kind.TOLD, f"--d2t {options.d2t}")
    else:
        found = _stored_map(intake, rows, vocab)
        ids = _ids(intake, options, target, found, rows)
        if torch.equal(ids, torch.arange(rows)):
            intake.note(
                f"drafts the first {rows} of {vocab} tokens only: a sign of a mapping that was never chosen by frequency"
            )
    intake.drop("t2d", "follows from d2t")
    _check_ids(ids, vocab, found.where)
    offsets = ids - torch.arange(rows)
    if found.kind is Kind.STORED:
        intake.replace("d2t", "d2t", Stored.of(offsets))
    else:
        intake.drop("d2t", f"a placeholder; {found.where} has the ids")
        intake.put("d2t", offsets)
        intake.note(f"draft vocabulary from {found.where}")


def _told(intake: Intake, kind: str, rows: int) -> Tensor:
    """Target ids that do not depend on `d2t`: the first ones, or those that `t2d` marks."""
    if kind == "identity":
        return torch.arange(rows)
    mask = intake.source.tensors.get("t2d")
    marked = torch.empty(0) if mask is None else mask.load().nonzero().flatten()
    if len(marked) != rows:
        raise HeadError(
            f"t2d marks {len(marked)} tokens, the lm_head has {rows} rows" if mask else "the head has no t2d",
            "--d2t t2d drafts the tokens that t2d marks",
            "Pass another --d2t",
        )
    return marked


def _whole(intake: Intake, rows: int) -> None:
    if "d2t" in intake:
        d2t = _integers("d2t", intake.look("d2t", (rows,)))
        if d2t.any() and not torch.equal(d2t, torch.arange(rows)):
            raise HeadError(
                f"the lm_head has a row for each of the {rows} tokens, and d2t reorders them",
                "A head over the whole vocabulary has no d2t, or zeros",
                "Export lm_head and d2t from one run",
            )
    intake.drop(("d2t", "t2d"), "the head drafts from the whole vocabulary")


def _stored_map(intake: Intake, rows: int, vocab: int) -> Mapping:
    """The mapping and where it is from; a list beside the weights counts where `d2t` is only a placeholder."""
    d2t = _integers("d2t", intake.look("d2t", (rows,))) if "d2t" in intake else None
    if d2t is not None and d2t.any():
        return Mapping(d2t, Kind.STORED)
    for kind, names in ((Kind.BESIDE, ("d2t",)), (Kind.LIST, ABSOLUTE_LISTS)):
        found = intake.source.side_table(*names)
        if found is not None and found[1].shape == (rows,):
            return Mapping(_integers(found[0], found[1]), kind, found[0])
    if d2t is None:
        raise HeadError(
            f"the lm_head has {rows} rows for the target's {vocab} tokens, and there is no d2t",
            "Which of the target's tokens they stand for must be stored with the head",
            f"If they are the first {rows}, as where a target's tables are padded to {vocab} rows, pass --d2t identity; "
            "otherwise export it with d2t, or put the vocabulary mapping beside it",
        )
    return Mapping(d2t, Kind.STORED)


def _ids(intake: Intake, options: Options, target: Target, found: Mapping, rows: int) -> Tensor:
    """Target ids of the draft vocabulary, whether its table holds offsets or ids."""
    d2t = found.table
    absolute, offset = d2t, torch.arange(rows) + d2t
    if found.kind is Kind.LIST:
        return absolute
    if options.d2t is not None:
        intake.note(f"d2t read as {options.d2t} (--d2t)")
        return absolute if options.d2t == "absolute" else offset
    mask = intake.source.tensors.get("t2d") or next((s["t2d"] for s in intake.source.side.values() if "t2d" in s), None)
    if mask is not None and mask.shape == (target.vocab_size,) and mask.load().any():
        marked = mask.load().nonzero().flatten()
        if torch.equal(marked, offset.sort().values):
            return offset
        if torch.equal(marked, absolute.sort().values):
            intake.note("d2t holds absolute ids (t2d says so); turned into offsets")
            return absolute
        raise HeadError(
            f"t2d marks {len(marked)} tokens, d2t maps to {len(offset.unique())}, and they differ",
            "Both must describe the same draft vocabulary",
            "Export both from one run",
        )
    fits = {"offset": _fits(offset, target.vocab_size), "absolute": _fits(absolute, target.vocab_size)}
    if not d2t.any():
        raise HeadError(
            f"d2t is all zeros for {rows} draft tokens of {target.vocab_size}",
            "It maps draft tokens to the target's; zeros are what it holds before the vocabulary is chosen",
            "Export it again with its mapping, or pass --d2t identity if the head drafts the first tokens",
        )
    if fits["offset"] != fits["absolute"]:
        if fits["absolute"]:
            intake.note("d2t holds absolute ids (as offsets they leave the vocabulary); turned into offsets")
        return absolute if fits["absolute"] else offset
    if not fits["offset"] or not bool((d2t.diff() > 0).all()):
        return offset  # offsets repeat wherever neighbouring tokens are both drafted; ids never do
    return _by_lm_head(intake, target, offset, absolute)


def _by_lm_head(intake: Intake, target: Target, offset: Tensor, absolute: Tensor) -> Tensor:
    """Rows of a trained lm_head resemble the target's for the same tokens."""
    lm_head = intake.taken.get("lm_head.weight")
    if lm_head is not None and lm_head.shape[1] == target.lm_head.shape[1]:
        as_offset, as_absolute = (mean_cosine(lm_head, target.lm_head, ids) for ids in (offset, absolute))
        if abs(as_offset - as_absolute) > 0.1:
            chosen = "offset" if as_offset > as_absolute else "absolute"
            intake.note(
                f"d2t read as {chosen}: rows of the lm_head resemble the target's so "
                f"(mean cosine {as_offset:.2f} as offsets, {as_absolute:.2f} as ids)"
            )
            return offset if chosen == "offset" else absolute
    raise HeadError(
        "d2t can be read as offsets or as absolute ids, and both fit",
        "Which one it is decides every drafted token",
        "Pass --d2t offset or --d2t absolute; `vllm-eagle doctor` measures which",
    )


def _fits(ids: Tensor, vocab: int) -> bool:
    return bool(ids.min() >= 0 and ids.max() < vocab and len(ids.unique()) == len(ids))


def _check_ids(ids: Tensor, vocab: int, origin: str) -> None:
    if not _fits(ids, vocab):
        raise HeadError(
            f"{origin} maps {len(ids)} draft tokens to {len(ids.unique())} ids from {int(ids.min())} to {int(ids.max())}",
            f"Offsets were expected: i + d2t[i] distinct and below {vocab}",
            "Was it saved before the vocabulary was mapped?",
        )


def _integers(name: str, tensor: Stored) -> Tensor:
    if tensor.dtype not in _INTEGERS or len(tensor.shape) != 1:
        raise HeadError(
            f"{name} is {tensor.kind} {list(tensor.shape)}", "A list of integers was expected", "Export it as int64"
        )
    return tensor.load().long()
