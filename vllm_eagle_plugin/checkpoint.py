"""Looking into safetensors files without loading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import HeadError


def safetensors_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in `files`, from their headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                    if name in shapes:
                        raise HeadError(
                            f"tensor {name} is in {file.name} and in another file beside it",
                            "Each tensor must be stored once",
                            "Remove the stale file",
                        )
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise HeadError(
                f"{file} cannot be read: {error}", "A whole safetensors file was expected", "Copy or download it again"
            ) from None
    return shapes
