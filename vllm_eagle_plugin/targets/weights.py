"""A target's weights on disk, whatever files hold them: one file or shards, safetensors, .bin or Mistral's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from ..errors import HeadError
from .stored import Stored
from .tensor_files import Contents, read_tensors

#: Where servers look for weights, first choice first: an index, or all files of a pattern.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "consolidated.safetensors.index.json")
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "consolidated*.safetensors")
#: Beside weights, and no part of them: a second copy in Mistral's format, adapters, a trainer's own files.
_OTHERS = ("adapter_model", "optimizer", "training_args", "scheduler")


class Checkpoint(Mapping[str, Stored]):
    """Tensors by name. Names come from an index where there is one, and tensors stay on disk until they are loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, Contents] = {}

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        return tuple(dict.fromkeys(self._where.values()))

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)

    def __getitem__(self, name: str) -> Stored:
        return self._contents(self._where[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    @cached_property
    def _where(self) -> dict[str, Path]:
        for index in _INDEXES:
            if (self.folder / index).is_file():
                return {name: self.folder / file for name, file in weight_map(self.folder / index).items()}
        for pattern in _PATTERNS:
            files = [f for f in sorted(self.folder.glob(pattern)) if not f.name.startswith(_OTHERS)]
            if pattern == "*.safetensors":
                files = [f for f in files if not f.name.startswith("consolidated")]
            if files:
                return {name: file for file in files for name in self._contents(file)}
        raise HeadError(
            f"the target {self.folder} has no safetensors files",
            "Its embedding is needed to tell it from other models",
            "Save it with `save_pretrained` or download its safetensors",
        )

    def _contents(self, file: Path) -> Contents:
        if file not in self._read:
            self._read[file] = read_tensors(file)
        return self._read[file]


def weight_map(index: Path) -> dict[str, str]:
    """File names by tensor name, from an index of shards; raises `HeadError` unless all of them are there."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        plain = all(isinstance(file, str) and Path(file).name == file for file in found.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise HeadError(
            f"{index.name} is damaged", "A JSON object with a weight_map was expected", "Copy or download it again"
        ) from None
    if not plain:
        raise HeadError(
            f"{index.name} names files outside its folder", "Plain file names were expected", "Do not trust this model"
        )
    missing = sorted({file for file in found.values() if not (index.parent / file).is_file()})
    if missing or not found:
        raise HeadError(
            f"{index.name} names {', '.join(missing) or 'no files'}, which {'is' if len(missing) == 1 else 'are'} not there",
            "Every shard it lists was expected beside it",
            "Copy or download the rest",
        )
    return found
