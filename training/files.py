"""Writing files whole or not at all, and saying plainly when the disk will not take them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import HeadError


@contextlib.contextmanager
def disk_errors(path: Path, kept: str) -> Iterator[None]:
    """Turn a failed write below `path` into one error; `kept` says what is safe and how to go on."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_write_failure(error):
            raise
        above = next((p for p in (path, *path.parents) if p.is_dir()), Path("."))
        reason = " ".join(str(error).split())
        free = shutil.disk_usage(above).free / 2**20
        raise HeadError(f"{path} cannot be written: {reason} ({free:,.0f} MiB free on that disk)", kept) from None


def _is_write_failure(error: RuntimeError) -> bool:
    """What `torch.save` raises on a full disk, as against any other RuntimeError."""
    text = str(error)
    return any(words in text for words in ("PytorchStreamWriter", "file write failed", "unexpected pos"))


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write instead of `path`; takes its place when the block ends well, else it is removed."""
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        _remove(partial)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, atomically."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        HeadError: it cannot be read; `what` names it for the reader.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadError(f"{path} cannot be read: {error}", f"{what} was expected there") from None
    if not isinstance(value, dict):
        raise HeadError(f"{path} holds a {type(value).__name__}", f"{what} was expected there")
    return value


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
