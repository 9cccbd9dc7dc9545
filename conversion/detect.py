"""Naming the producer of a head from evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import HeadError, UsageError
from .foreign import refuse_foreign
from .readers import READERS
from .reading import Reader
from .source import Source

_SURE = {4: "certain", 3: "certain", 2: "likely", 1: "possible"}


@dataclass(frozen=True)
class Detection:
    """The reader for a head, why, and how sure that is; `others` would fit too, with less or equal reason."""

    reader: Reader
    evidence: list[str]
    sure: str = "certain"
    others: list[Reader] = field(default_factory=list)
    #: Readers with evidence as strong: they must read the head the same way, or the user decides.
    rivals: list[Reader] = field(default_factory=list)
    #: Whether it is known whose training code read the head's config.
    trainer_known: bool = True


def detect(source: Source, producer: str | None = None) -> Detection:
    """The reader with the strongest evidence, or the one the user named.

    Raises:
        HeadError: none fits, or the head is of a kind that is not read here.
    """
    if producer is not None:
        if producer not in READERS:
            raise UsageError(
                f"--producer {producer} is not known", f"One of {', '.join(READERS)} was expected", "Correct it"
            )
        return Detection(READERS[producer], ["named with --producer"])
    refuse_foreign(source)
    found = [(reader, evidence) for reader in READERS.values() if (evidence := reader.recognise(source))]
    if not found:
        names = ", ".join(f"{name} {list(t.shape)}" for name, t in list(source.tensors.items())[:6])
        raise HeadError(
            f"{source.path} is of no known producer; it has {len(source.tensors)} tensors: {names}",
            f"Known are {', '.join(f'{r.name} ({r.summary})' for r in READERS.values())}",
            "If it is one of these, name it with --producer",
        )
    found.sort(key=lambda pair: (-pair[1].strength, -len(pair[1].points)))
    reader, best = found[0]
    rivals = [r for r, e in found[1:] if e.strength == best.strength]
    known = best.strength >= 3 and best.names_trainer
    return Detection(reader, best.points, _SURE[best.strength], [r for r, _ in found[1:]], rivals, known)
