"""What a user can tell the converter that files do not say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
