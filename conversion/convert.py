"""From a trained head to a folder that vLLM serves."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import HeadError
from .detect import Detection, detect
from .options import DTYPES, Options
from .reading import Reading
from .route import Layout, choose_layout
from .source import read_source
from .target import Target, read_target
from .write import check_output, write_head


@dataclass(frozen=True)
class Conversion:
    """What was found, what was made of it, and how to serve it."""

    detection: Detection
    reading: Reading
    layout: Layout
    target: Target
    output: Path
    written: bool

    @property
    def serve_command(self) -> str:
        """The line to paste into a shell."""
        limit = self.reading.config.max_draft_tokens
        speculative = {
            "method": self.reading.config.method,
            "model": str(self.output),
            "num_speculative_tokens": limit or 3,
        }
        return f"vllm serve {shlex.quote(self.target.name)} --speculative-config {shlex.quote(json.dumps(speculative))}"

    def as_json(self) -> dict[str, Any]:
        return {
            "producer": self.detection.reader.name,
            "evidence": self.detection.evidence,
            "notes": self.reading.notes,
            "dropped": self.reading.dropped,
            "method": self.reading.config.method,
            "architecture": self.layout.config["architectures"][0],
            "needs_plugin": self.layout.needs_plugin,
            "why": self.layout.why,
            "output": str(self.output),
            "written": self.written,
            "serve": self.serve_command,
        }


def convert(
    head: Path,
    target_name: str,
    output: Path,
    options: Options | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Conversion:
    """Read the head at `head`, check it against its target, and write it to `output`.

    Raises:
        HeadError: the head, its target or an option is wrong; nothing is written then.
    """
    options = options or Options()
    if not dry_run:
        check_output(output, force)
    source = read_source(head)
    detection = detect(source, options.producer)
    _check_options(detection, options)
    target = read_target(target_name)
    reading = detection.reader.read(source, target, options)
    if options.dtype is not None:
        reading.tensors = {n: _cast(t, options.dtype) for n, t in reading.tensors.items()}
        reading.notes.append(f"weights written as {options.dtype}")
    reading.check()
    layout = choose_layout(reading, target)
    provenance = {
        "converter": f"vllm-eagle-plugin {__version__}",
        "producer": detection.reader.name,
        "evidence": detection.evidence,
        "notes": reading.notes,
        "dropped": reading.dropped,
        "files": source.checksums(),
        "method": reading.config.method,
        "target": target.fingerprint(),
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(layout.tensors.items())},
    }
    if not dry_run:
        write_head(output, {**layout.config, "eagle_provenance": provenance}, layout.tensors, force)
    return Conversion(detection, reading, layout, target, output, not dry_run)


def _check_options(detection: Detection, options: Options) -> None:
    reader = detection.reader
    for name in ("token_pairing", "rope_theta", "embedding"):
        if getattr(options, name) is not None and name not in reader.options:
            raise HeadError(
                f"--{name.replace('_', '-')} was given for a {reader.name} head",
                "It changes nothing in heads of this producer",
                "Leave the option out",
            )


def _cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
