"""Writing a converted head: whole or not at all, and the same bytes for the same input.

Tensors go from file to file in pieces, checked on the way, so that memory does not grow with the head.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import HeadError
from ..targets.stored import Stored
from .quantised import is_companion
from .values import Range

#: All that a folder of ours holds; with anything else in it, it is not ours to replace.
WRITTEN = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.bool: "BOOL", torch.int8: "I8",
    torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
Progress = Callable[[int], None]


def check_output(output: Path, force: bool) -> None:
    """Refuse to overwrite what is there, unless asked to and it is a head we wrote."""
    if not output.exists():
        above = next(folder for folder in output.absolute().parents if folder.exists())
        if not above.is_dir():
            raise HeadError(
                f"{above} is a file", f"A folder to put {output.name} in was expected", "Choose another folder"
            )
        return
    if not output.is_dir():
        raise HeadError(f"{output} is a file", "A folder to write the head to was expected", "Choose another name")
    if not any(output.iterdir()):
        return
    if not force:
        raise HeadError(
            f"{output} exists and is not empty",
            "Conversion never overwrites on its own",
            "Pass --force, or another folder",
        )
    config = output / "config.json"
    ours = config.is_file() and "eagle_provenance" in config.read_text(errors="replace")
    if not ours or {f.name for f in output.iterdir()} - WRITTEN:
        raise HeadError(
            f"{output} holds something other than a converted head",
            "--force replaces only what vllm-eagle wrote",
            "Choose another folder, or remove this one",
        )


def write_head(
    output: Path,
    config: Callable[[], dict[str, Any]],
    tensors: Mapping[str, Stored],
    force: bool,
    extra: tuple[Path, ...] = (),
    check: Callable[[Path], None] | None = None,
    progress: Progress = lambda count: None,
) -> None:
    """Write config.json and model.safetensors to a folder beside `output`, then put it in its place.

    `config` is asked for when the weights are written; `extra` files are copied; `check` may look at the
    finished folder and raise, and then there is no output.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            write_tensors(partial / "model.safetensors", tensors, progress)
            for file in extra:
                shutil.copyfile(file, partial / file.name)
            (partial / "config.json").write_text(
                json.dumps(config(), indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            if check is not None:
                check(partial)
            _sync(partial)
            partial.chmod(0o755)
            check_output(output, force)
            _put(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise HeadError(
            f"{output} cannot be written: {error}", "A writable folder with room was expected", "Choose another folder"
        ) from None


def write_tensors(file: Path, tensors: Mapping[str, Stored], progress: Progress = lambda count: None) -> None:
    """A safetensors file of `tensors`, sorted by name; raises `HeadError` for values no trained weight has."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel * tensor.dtype.itemsize
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}  # fmt: skip
        offset += size
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    with _one_thread(), file.open("wb") as out:
        out.write(len(described).to_bytes(8, "little") + described)
        for name in sorted(tensors):
            seen = Range(name, 0 if is_companion(name) else len(tensors[name].shape))
            for piece in tensors[name].pieces():
                seen.see(piece)
                at = out.tell()
                out.write(memoryview(piece.contiguous().view(torch.uint8).numpy()))
                _write_back(out.fileno(), at, piece.nbytes)
                progress(piece.nbytes)
            seen.check()
    with safe_open(file, framework="pt") as opened:  # by the library that servers read it with
        if set(opened.keys()) != set(tensors):
            raise HeadError(f"{file} was not written whole", "Every tensor was expected in it", "Convert again")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Looking at pieces is bound by memory; more threads of torch spin between them and starve the checksums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_back(descriptor: int, start: int, length: int) -> None:
    """Send what was just written on its way to the disk, so that the sync at the end finds little to wait for."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def _sync(folder: Path) -> None:
    """Data before names: after a crash the output is absent or whole."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put(partial: Path, output: Path) -> None:
    """Move `partial` to `output`; what was there stays if that fails, and goes if it works."""
    if not output.exists():
        partial.rename(output)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    aside = replaced / "head"
    try:
        output.rename(aside)
        partial.rename(output)
    except BaseException:  # Ctrl-C too must not cost the old head
        if aside.exists():
            aside.rename(output)
        replaced.rmdir()
        raise
    shutil.rmtree(replaced)
