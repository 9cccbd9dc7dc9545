"""Naming the producer of a head from evidence."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import HeadError, UsageError
from .readers import READERS
from .reading import Reader
from .source import Source


@dataclass(frozen=True)
class Detection:
    """The reader for a head, and why."""

    reader: Reader
    evidence: list[str]


def detect(source: Source, producer: str | None = None) -> Detection:
    """The one reader whose evidence fits, or the one the user named.

    Raises:
        HeadError: none fits, or more than one does.
    """
    if producer is not None:
        if producer not in READERS:
            raise UsageError(f"--producer {producer} is not known", f"One of {', '.join(READERS)} was expected")
        return Detection(READERS[producer], ["named with --producer"])
    found = [Detection(reader, evidence) for reader in READERS.values() if (evidence := reader.recognise(source))]
    if len(found) == 1:
        return found[0]
    if found:
        raise HeadError(
            f"the head looks like {' and like '.join(d.reader.name for d in found)}",
            "One was expected",
            "Name it with --producer",
        )
    names = ", ".join(f"{name} {list(t.shape)}" for name, t in list(source.tensors.items())[:6])
    raise HeadError(
        f"{source.path} is of no known producer; it has {len(source.tensors)} tensors: {names}",
        f"Known are {', '.join(f'{r.name} ({r.summary})' for r in READERS.values())}",
        "If it is one of these, name it with --producer",
    )
