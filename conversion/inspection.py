"""What a head is, on one screen, without converting it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HeadError
from ..targets.target import read_target
from .detect import Detection, detect
from .options import Options
from .source import Source
from .stock import stock_verdict
from .understand import open_source, understand


@dataclass(frozen=True)
class Inspection:
    """A head's producer with the evidence for it, its tensors and its config."""

    source: Source
    detection: Detection
    #: Filled if a target was given: what stock vLLM would do with the head, what the reader makes of it, or
    #: why `convert` would refuse it.
    stock: dict[str, Any] | None = None
    notes: list[str] | None = None
    refusal: str | None = None
    #: With a target: what becomes of each key of its config.
    keys: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.source.path),
            "producer": self.detection.reader.name,
            "summary": self.detection.reader.summary,
            "sure": self.detection.sure,
            "evidence": self.detection.evidence,
            "could_be": [reader.name for reader in self.detection.others],
            "parameters": sum(t.numel for t in self.source.tensors.values()),
            "tensors": {name: {"shape": list(t.shape), "dtype": t.kind} for name, t in self.source.tensors.items()},
            "config": dict(self.source.config.values) or None,
            "stock": self.stock,
            "notes": self.notes,
            "refusal": self.refusal,
            "config_keys": self.keys,
        }


def inspect_head(
    head: str | Path,
    options: Options | None = None,
    revision: str | None = None,
    config: Path | None = None,
    target: str | None = None,
) -> Inspection:
    """Read and recognise the head at `head`; raises `HeadError` as `convert` does.

    With `target`, also say what stock vLLM would do with the head as it is.
    """
    options = options or Options()
    source = open_source(head, config, revision)
    detection = detect(source, options.producer)
    if target is None:
        return Inspection(source, detection)
    known = read_target(target)
    try:
        _, reading = understand(source, known, options)
    except HeadError as error:
        return Inspection(source, detection, refusal=str(error))
    verdict = stock_verdict(source, reading, known)
    stock = {"outcome": verdict.outcome, "reasons": verdict.reasons, "cautions": verdict.cautions, "text": str(verdict)}
    return Inspection(source, detection, stock, reading.notes, keys=reading.keys)
