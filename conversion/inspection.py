"""What a head is, on one screen, without converting it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .detect import Detection, detect
from .source import Source
from .understand import open_source


@dataclass(frozen=True)
class Inspection:
    """A head's producer with the evidence for it, its tensors and its config."""

    source: Source
    detection: Detection

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
        }


def inspect_head(head: str | Path, producer: str | None = None, revision: str | None = None) -> Inspection:
    """Read and recognise the head at `head`; raises `HeadError` as `convert` does."""
    source = open_source(head, revision=revision)
    return Inspection(source, detect(source, producer))
