"""Token maps: lists of the target's tokens that a head drafts (FR-Spec's hot tokens, vLLM V0's `token_map`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HeadError
from .intake import Intake
from .options import Options
from .parse import read_tensors
from .stored import Stored
from .target import Target
from .vocabulary import ABSOLUTE_LISTS


def token_map(intake: Intake, options: Options, target: Target) -> Tensor | None:
    """Ascending ids [Vd] of a map given by the user, stored in the head, or lying beside it."""
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
