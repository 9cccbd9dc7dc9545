"""A trained head as files: tensors by name, an optional config, checksums. Nothing is executed."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import HeadError

TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".json")
#: Files that lie beside weights and hold something else.
_OTHER_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "added_tokens.json",
    "training_args.bin",
}
#: Wrappers in which trainers save a state dict, and prefixes they leave on its names.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "draft_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


#: What the parsers of these formats have been seen to raise for cut and altered files.
_UNREADABLE = (
    SafetensorError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Source:
    """What a head's folder or file holds."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    #: None where no config.json lies beside the weights.
    config: Mapping[str, Any] | None

    def checksums(self) -> dict[str, str]:
        """sha256 of every file read."""
        return {file.name: _sha256(file) for file in self.files}

    def described(self, key: str, default: Any = None) -> Any:
        """A value of the head's config.json, if it has one."""
        return (self.config or {}).get(key, default)

    def number(self, key: str, kind: type = int, inside: str | None = None) -> Any:
        """A positive number of config.json, or of the object `inside` it; None where it says nothing."""
        value = (self.object(inside) if inside else self.config or {}).get(key)
        if value is None:
            return None
        if type(value) not in (int, kind) or not (math.isfinite(value) and value > 0):
            raise HeadError(
                f"config.json says {key} is {value!r}",
                f"A positive {'whole ' if kind is int else ''}number was expected",
                "Correct config.json",
            )
        return value

    def object(self, key: str) -> Mapping[str, Any]:
        """An object of config.json; empty where it says nothing."""
        value = self.described(key) or {}
        if not isinstance(value, Mapping):
            raise HeadError(f"config.json says {key} is {value!r}", "An object was expected", "Correct config.json")
        return value


def read_source(path: Path) -> Source:
    """Read a head from a folder, or from one file of tensors.

    Raises:
        HeadError: nothing there, nothing readable, or more in it than tensors.
    """
    if not path.exists():
        raise HeadError(f"{path} does not exist", "A folder or a file with a trained head was expected")
    config_file = (path if path.is_dir() else path.parent) / "config.json"
    files = weight_files(path)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_tensors(file):
            if name in tensors:
                raise HeadError(
                    f"tensor {name} is in {file.name} and in another file beside it",
                    "Each tensor must be stored once",
                    "Pass the one file to convert instead of the folder",
                )
            tensors[name] = tensor
    if not tensors:
        raise HeadError(
            f"{', '.join(f.name for f in files)} in {path if path.is_dir() else path.parent} holds no tensors",
            "The weights of a head were expected",
            "Is it the right file?",
        )
    read = (*files, config_file) if config_file.exists() else files
    return Source(path, tuple(read), strip_prefixes(tensors), _read_config(config_file))


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files of a head that hold its tensors: safetensors before pickles, as every loader does."""
    if path.is_file():
        if path.suffix not in TENSOR_SUFFIXES:
            raise HeadError(f"{path.name} is of an unknown kind", f"One of {', '.join(TENSOR_SUFFIXES)} was expected")
        return (path,)
    for suffix in TENSOR_SUFFIXES:
        files = [
            f
            for f in sorted(path.glob(f"*{suffix}"))
            if f.name not in _OTHER_FILES and not f.name.endswith(".index.json")
        ]
        if files:
            return tuple(files)
    raise HeadError(
        f"{path} holds no weights",
        f"A file ending in one of {', '.join(TENSOR_SUFFIXES)} was expected",
        "Is it the folder of the head, and was it downloaded whole?",
    )


def read_table(path: Path) -> Tensor:
    """The one matrix in a file, for tables that are kept apart from their head."""
    matrices = {name: t for name, t in _read_tensors(path) if t.dim() == 2}
    if len(matrices) != 1:
        raise HeadError(f"{path.name} holds {len(matrices)} matrices: {sorted(matrices)}", "One table was expected")
    return next(iter(matrices.values()))


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what data-parallel and compiling wrappers put in front of all of them."""
    stripped = dict(tensors)
    for prefix in _PREFIXES:
        if stripped and all(name.startswith(prefix) for name in stripped):
            stripped = {name.removeprefix(prefix): t for name, t in stripped.items()}
    return stripped


def _read_config(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise HeadError(f"{file} cannot be read: {error}", "A JSON object was expected") from None
    if not isinstance(config, dict):
        raise HeadError(f"{file} holds a {type(config).__name__}", "A JSON object was expected")
    return config


def _read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    yield from _unwrap(file, _load(file))


def _load(file: Path) -> Any:
    try:
        return _parse(file)
    except HeadError:
        raise
    except _UNREADABLE as error:
        lines = str(error).splitlines()
        wanted = next((line for line in lines if "GLOBAL" in line or "global" in line), None)
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise HeadError(
                f"{file.name} is a pickle that wants to run code when loaded: {wanted.strip()}",
                "Only plain tensors are read (weights_only=True)",
                "Save the state dict alone: torch.save(head.state_dict(), path)",
            ) from None
        raise HeadError(
            f"{file} cannot be read: {lines[0] if lines else type(error).__name__}",
            "A whole file of tensors was expected",
            "Copy or download it again",
        ) from None


def _parse(file: Path) -> Any:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: _read_array(file, arrays, name) for name in arrays.files}
    if file.suffix == ".json":
        return json.loads(file.read_text(encoding="utf-8"))
    return torch.load(file, map_location="cpu", weights_only=True)


def _read_array(file: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise HeadError(
            f"array {name} in {file.name} holds Python objects",
            "Only arrays of numbers are read: objects run code when loaded",
            "Save it with a floating-point dtype",
        ) from None


def _unwrap(file: Path, loaded: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(loaded, Tensor):
        loaded = {file.stem: loaded}
    while isinstance(loaded, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if wrapper is None:
            break
        loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise HeadError(f"{file.name} holds a {type(loaded).__name__}", "A dictionary of tensors was expected")
    for name, value in loaded.items():
        tensor = _as_tensor(f"{name} in {file.name}", value)
        if tensor is not None:
            yield str(name), tensor


def _as_tensor(what: str, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise HeadError(
                f"{what} is {'quantised' if value.is_quantized else f'{value.layout} on {value.device}'}",
                "Plain dense tensors were expected",
                "Save it as one",
            )
        return value.detach()
    if not isinstance(value, np.ndarray) and not (isinstance(value, list) and value):
        return None  # a number beside the weights: an epoch, a step
    try:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:  # texts, objects, rows of unequal length
        raise HeadError(
            f"{what} is no table of numbers: {str(error).splitlines()[0]}",
            "Everything beside the weights but plain numbers must be left out",
            "Save the state dict alone",
        ) from None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
