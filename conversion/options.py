"""What a user can tell the converter that files do not say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHOICES = {
    "token_pairing": ("next", "same"),
    "aux_ids_convention": ("boundary", "output"),
    "d2t": ("offset", "absolute", "identity", "t2d"),
    "fc_order": ("embed-hidden", "hidden-embed"),
    "dtype": tuple(DTYPES),
}


@dataclass(frozen=True)
class Options:
    """Facts given on the command line; None means: read it from the head, or refuse to guess."""

    producer: str | None = None
    #: Whether the head was trained on the token after the hidden state's position (`next`, as EAGLE is)
    #: or on the one at it (`same`).
    token_pairing: str | None = None
    #: Layers of the target that an EAGLE-3 head reads, and how they are counted: as the streams between
    #: layers, vLLM's way (`boundary`: 0 is the embedding), or as outputs of layers (`output`, one less).
    #: In the order of fc's columns, which are permuted to the ascending order of vLLM.
    aux_ids: tuple[int, ...] | None = None
    aux_ids_convention: str | None = None
    rope_theta: float | None = None
    #: Whether `d2t` holds offsets or absolute ids, or is wrong and the head drafts the first tokens
    #: (`identity`) or those that its mask marks (`t2d`).
    d2t: str | None = None
    #: In which order fc's columns read the embedding and the hidden state.
    fc_order: str | None = None
    #: A file with the embedding table of a head that keeps it apart.
    embedding: Path | None = None
    #: A LoRA adapter to merge into the head, or `none` for one beside it that is to be left out.
    adapter: str | None = None
    #: A list of the target tokens that the rows of a reduced lm_head stand for.
    token_map: Path | None = None
    #: Tensors to leave out on purpose.
    drop: tuple[str, ...] = ()
    #: Flags of the head's config that the user knows better.
    flags: Mapping[str, Any] = field(default_factory=dict)
    #: Dtype of the written weights; None keeps each tensor's own.
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value} is not known",
                    f"One of {', '.join(known)} was expected",
                    "Correct the option",
                )
        if self.rope_theta is not None and not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise UsageError(f"--rope-theta is {self.rope_theta}", "A positive number was expected", "Correct it")
        if self.aux_ids is not None and (not self.aux_ids or min(self.aux_ids) < 0):
            raise UsageError(
                f"--aux-ids is {list(self.aux_ids)}", "Layers of the target were expected", "As in --aux-ids 2,15,27"
            )
