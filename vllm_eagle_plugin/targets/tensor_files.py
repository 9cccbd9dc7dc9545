"""Reading one file of tensors. Nothing in it is executed, and nothing bigger than the file is believed."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import HeadError
from .stored import Stored, stored_in

TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".json")
#: Names under which trainers wrap a state dict.
_WRAPPERS = ("draft_state_dict", "model_state_dict", "state_dict", "model", "module")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
#: What the parsers of these formats have been seen to raise for cut and altered files.
_UNREADABLE = (
    SafetensorError, OSError, EOFError, ValueError, TypeError, RuntimeError, LookupError, AttributeError,
    AssertionError, NotImplementedError, RecursionError, MemoryError, OverflowError, zipfile.BadZipFile,
    zlib.error, struct.error, pickle.UnpicklingError,
)  # fmt: skip
#: A compressed archive may not hold more than this many times its own size.
_MOST_EXPANSION = 50


class Contents(dict[str, Stored]):
    """Tensors by name, and the key of the object they were found in, if they did not stand at the top."""

    wrapper = ""


def read_tensors(file: Path, lists: bool = False) -> Contents:
    """Every tensor of `file` by name; numbers and texts beside the weights (steps, losses) are left out.

    `lists`: a bare list of integers counts as a tensor, named as the file (token maps are stored so).

    Raises:
        HeadError: the file is damaged, wants to run code, or holds something other than tensors.
    """
    try:
        return _parse(file, lists)
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
            f"{file} cannot be read: {lines[0][:200] if lines else type(error).__name__}",
            "A whole file of tensors was expected",
            "Copy or download it again",
        ) from None


def _parse(file: Path, lists: bool) -> Contents:
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.suffix == ".npz":
        _refuse_bomb(file, stored_only=False)
        with np.load(file, allow_pickle=False) as arrays:
            return _stored(file, {name: _array(file, arrays, name) for name in arrays.files})
    if file.suffix == ".json":
        return _stored(file, json.loads(file.read_text(encoding="utf-8")), lists)
    zipped = zipfile.is_zipfile(file)
    if zipped:
        _refuse_bomb(file, stored_only=True)
    return _stored(file, torch.load(file, map_location="cpu", weights_only=True, mmap=zipped), lists)


def _safetensors(file: Path) -> Contents:
    found = Contents()
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
            part = opened.get_slice(name)
            kind = part.get_dtype()
            if kind not in _DTYPES:
                raise HeadError(
                    f"tensor {name} in {file.name} is of type {kind}",
                    "Plain numbers were expected",
                    "If the head is quantised, export it before quantisation",
                )
            found[name] = stored_in(file, name, tuple(part.get_shape()), _DTYPES[kind])
    return found


def _refuse_bomb(file: Path, stored_only: bool) -> None:
    """Archives that unpack to far more than they are: torch never compresses, numpy by little."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    unpacked, packed = sum(e.file_size for e in entries), max(1, file.stat().st_size)
    compressed = any(e.compress_type != zipfile.ZIP_STORED for e in entries)
    if (stored_only and compressed) or unpacked > _MOST_EXPANSION * packed:
        raise HeadError(
            f"{file.name} is an archive of {packed} bytes that unpacks to {unpacked}",
            "Weights do not compress like that, and torch.save does not compress at all",
            "Save the state dict again with torch.save or safetensors",
        )


def _array(file: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
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


def _stored(file: Path, loaded: Any, lists: bool = False) -> Contents:
    found = Contents()
    if isinstance(loaded, Tensor) or (lists and _numbers(loaded)):
        loaded = {file.stem: loaded}
    while isinstance(loaded, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if wrapper is None:
            break
        loaded, found.wrapper = loaded[wrapper], wrapper
    if not isinstance(loaded, Mapping):
        raise HeadError(
            f"{file.name} holds a {type(loaded).__name__}",
            "A dictionary of tensors was expected",
            "Save the state dict: torch.save(head.state_dict(), path)",
        )
    for name, value in loaded.items():
        tensor = _as_tensor(f"{name} in {file.name}", value)
        if tensor is not None:
            found[str(name)] = Stored.of(tensor)
    return found


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _as_tensor(what: str, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise HeadError(
                f"{what} is {'quantised' if value.is_quantized else f'{value.layout} on {value.device}'}",
                "Plain dense tensors were expected",
                "Save it as one",
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise HeadError(
                f"{what} is {list(value.shape)} but has only {value.untyped_storage().nbytes()} bytes",
                "Every number of a trained tensor is stored",
                "Save it with .contiguous()",
            )
        return value.detach()
    if not isinstance(value, np.ndarray) and not (isinstance(value, list) and value):
        return None  # a number beside the weights: an epoch, a step
    try:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # texts, objects, rows of unequal length
        raise HeadError(
            f"{what} is no table of numbers: {str(error).splitlines()[0]}",
            "Everything beside the weights but plain numbers must be left out",
            "Save the state dict alone",
        ) from None
