"""What a user can tell the converter that files do not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """Facts given on the command line; None means: read it from the head, or refuse to guess."""

    producer: str | None = None
    #: Whether the head was trained on the token after the hidden state's position (`next`, as EAGLE is)
    #: or on the one at it (`same`).
    token_pairing: str | None = None
    rope_theta: float | None = None
    #: A file with the embedding table of a head that keeps it apart.
    embedding: Path | None = None
    #: Dtype of the written weights; None keeps each tensor's own.
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--token-pairing", self.token_pairing, ("next", "same")),
            ("--dtype", self.dtype, tuple(DTYPES)),
        ):
            if value is not None and value not in known:
                raise UsageError(f"{name} {value} is not known", f"One of {', '.join(known)} was expected")
        if self.rope_theta is not None and not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise UsageError(f"--rope-theta is {self.rope_theta}", "A positive number was expected")
