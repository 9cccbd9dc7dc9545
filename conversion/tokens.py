"""Token maps: lists of the target's tokens that a head drafts (FR-Spec's hot tokens, vLLM V0's `token_map`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HeadError
from ..targets.stored import Stored
from ..targets.target import Target
from ..targets.tensor_files import read_tensors
from .embeddings import take_lm_head
from .intake import Intake
from .options import Options
from .vocabulary import ABSOLUTE_LISTS


def take_mapped_lm_head(
    intake: Intake, options: Options, target: Target, width: int, bias_name: str | None = None
) -> dict[str, Any] | None:
    """Flags of an lm_head cut to a token map, the head's own or the target's; None without a map."""
    wanted = token_map(intake, options, target)
    if wanted is None:
        return None
    rows = len(wanted)
    flags: dict[str, Any] = {"own_lm_head": True, "draft_vocab_size": rows}
    if "lm_head.weight" in intake:
        stored = intake.look("lm_head.weight", (None, width)).shape[0]
        if stored not in (rows, target.vocab_size):
            raise HeadError(
                f"lm_head.weight has {stored} rows, the token map {rows} tokens",
                f"{rows} rows were expected, or {target.vocab_size}",
                "Use the token map that the head was exported with",
            )
        cut = None if stored == rows else lambda t: t[wanted]
        intake.take("lm_head.weight", change=cut)
        if bias_name and bias_name in intake:
            intake.take(bias_name, "lm_head.bias", (stored,), change=cut)
            flags["lm_head_bias"] = True
    else:
        intake.put("lm_head.weight", target.lm_head.load()[wanted].clone())
        intake.note(f"lm_head cut from the target's for the {rows} tokens of the map")
    intake.put("d2t", wanted - torch.arange(rows))
    return flags


def take_any_lm_head(intake: Intake, options: Options, target: Target, width: int) -> dict[str, Any]:
    """Flags of `lm_head.weight` and its bias: cut to a token map where there is one, else as it is stored, if it is."""
    mapped = take_mapped_lm_head(intake, options, target, width, "lm_head.bias")
    return take_lm_head(intake, "lm_head.weight", target, width, "lm_head.bias") if mapped is None else mapped


def token_map(intake: Intake, options: Options, target: Target) -> Tensor | None:
    """Ids [Vd] of a map given by the user, stored in the head, or lying beside it."""
    where, stored = _find(intake, options)
    if stored is None:
        return None
    ids = stored.load().flatten().long()
    distinct = ids.unique()
    if stored.dtype.is_floating_point or len(distinct) != len(ids) or ids.min() < 0 or ids.max() >= target.vocab_size:
        raise HeadError(
            f"{where} lists {len(ids)} tokens, {len(distinct)} of them distinct, up to {ids.max()}",
            f"Distinct ids of the target's {target.vocab_size} tokens were expected",
            "Is it for another target?",
        )
    intake.note(f"drafts the {len(ids)} tokens of {where}")
    return ids


def _find(intake: Intake, options: Options) -> tuple[str, Stored | None]:
    if options.token_map is not None:
        if not options.token_map.is_file():
            raise HeadError(f"{options.token_map} does not exist", "A list of tokens was expected", "Check --token-map")
        found = read_tensors(options.token_map, lists=True)
        if len(found) != 1:
            raise HeadError(
                f"{options.token_map.name} holds {len(found)} tables", "One list was expected", "Save it by itself"
            )
        return options.token_map.name, next(iter(found.values()))
    for name in ABSOLUTE_LISTS:
        if name in intake:
            stored = intake.look(name)
            intake.replace(name, "d2t", stored)  # its content becomes d2t
            return name, stored
    for file, tables in intake.source.side.items():
        for name, stored in tables.items():
            if len(stored.shape) == 1 and not stored.dtype.is_floating_point and stored.dtype != torch.bool:
                return f"{name} in {file}", stored
    return "", None
