"""A trained head as it lies on disk: tensors by their own names, config, side files, checksums."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import HeadError
from ..targets.stored import Stored
from ..targets.tensor_files import read_tensors
from .adapter import is_lora, refuse_alone, refuse_unmerged
from .described import Described
from .files import config_of, find_files

#: What wrappers put in front of the draft head's names when they save it with, or inside, a whole model.
_INSIDE_A_MODEL = re.compile(r"^(?:.*\.)?(?:draft_model|eagle_module|ea_layer|draft_module)\.")
#: Bytes of a file that are mapped at once for its checksum; a multiple of every page size.
_WINDOW = 16 << 20
#: What data-parallel, compiling and Hugging Face wrappers put in front of names.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
#: Parts of the target that trainers leave in a head's state dict.
_TARGET_PARTS = ("target_model.", "base_model.", "verifier_")


@dataclass(frozen=True)
class Source:
    """What a head's folder or file holds. `tensors` are named as the head's own module names them."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]
    config: Described
    #: Tensors of side files (`eagle_meta.pt`, vocabulary mappings, token maps), by file and name.
    side: Mapping[str, Mapping[str, Stored]] = field(default_factory=dict)
    #: Names in the files, by the names in `tensors`, where they differ.
    stored_names: Mapping[str, str] = field(default_factory=dict)
    #: Tensors that are no part of the head, by their names in the files, and why.
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    #: The key under which a trainer's checkpoint keeps the weights; empty where they stand by themselves.
    wrapper: str = ""
    #: Weights of a LoRA adapter that lies beside the head's.
    adapter: Path | None = None

    @cached_property
    def checksums(self) -> dict[str, str]:
        """sha256 of every file read."""
        spare = (os.cpu_count() or 1) - 1  # one is busy writing meanwhile, and would wait for these
        with ThreadPoolExecutor(max(1, min(spare, 4))) as pool:
            return dict(zip((f.name for f in self.files), pool.map(_sha256, self.files), strict=True))

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files that hold tensors of the head."""
        return tuple(f for f in self.files if f.name not in self.side and f.name != "config.json")

    def has(self, *names: str) -> bool:
        return all(name in self.tensors for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; empty if there is none of that name."""
        return self.tensors[name].shape if name in self.tensors else ()

    def side_table(self, *names: str) -> tuple[str, Stored] | None:
        """The first of `names` in the side files, with where it was found."""
        for file, tables in self.side.items():
            for name in names:
                if name in tables:
                    return f"{name} in {file}", tables[name]
        return None


def read_source(path: Path, config: Path | None = None) -> Source:
    """Read a head from a folder, or from one file of tensors. Weights stay on disk until they are loaded.

    Raises:
        HeadError: nothing there, nothing readable, or more in it than tensors.
    """
    files = find_files(path, config)
    stored: dict[str, Stored] = {}
    dropped: dict[str, str] = {}
    wrapper = ""
    side = {file.name: read_tensors(file, lists=True) for file in files.side}
    for file in files.weights:
        found = read_tensors(file)
        if set(found) == {"weight"} and len(files.weights) > 1:  # accelerate's second model
            side[file.name] = found
            continue
        wrapper = wrapper or found.wrapper
        for name, tensor in found.items():
            if name in stored:
                raise HeadError(
                    f"tensor {name} is in {file.name} and in another file beside it",
                    "Each tensor must be stored once",
                    "Pass the one file to convert instead of the folder",
                )
            stored[name] = tensor
    if not stored:
        raise HeadError(
            f"{', '.join(f.name for f in files.weights)} in {path if path.is_dir() else path.parent} holds no tensors",
            "The weights of a head were expected",
            "Is it the right file?",
        )
    lora = [name for name in stored if is_lora(name)]
    if lora:
        if len(lora) == len(stored):
            refuse_alone(path)
        refuse_unmerged(path, lora)
    for name, tensor in stored.items():
        if not tensor.numel:
            raise HeadError(
                f"tensor {name} is empty ({list(tensor.shape)})",
                "Trained weights were expected",
                "Gather sharded weights before the export (DeepSpeed ZeRO-3: zero_to_fp32.py)",
            )
    tensors, names = own_names(stored, dropped)
    if not tensors:
        raise HeadError(
            f"all {len(stored)} tensors of {path} are of the target: {', '.join(list(stored)[:4])}",
            "The weights of a head were expected beside them, or alone",
            "Pass the folder of the head",
        )
    read = (*files.weights, *files.side, *((files.config,) if files.config else ()))
    renamed = {name: original for name, original in names.items() if name != original}
    described = Described(config_of(files))
    return Source(path, read, tensors, described, side, renamed, dropped, files.notes, wrapper, files.adapter)


def read_table(path: Path) -> Stored:
    """The one matrix in a file, for tables that are kept apart from their head."""
    if not path.is_file():
        raise HeadError(f"{path} does not exist", "A file with one table was expected", "Check the path")
    matrices = {name: t for name, t in read_tensors(path).items() if len(t.shape) == 2}
    if len(matrices) != 1:
        raise HeadError(
            f"{path.name} holds {len(matrices)} matrices: {sorted(matrices)[:8]}",
            "One table was expected",
            "Save the table by itself",
        )
    return next(iter(matrices.values()))


def own_names(stored: Mapping[str, Stored], dropped: dict[str, str]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors under the names of the head's own module, and what those were called in the files."""
    original = {name: name for name in stored}
    inside = {n: m.end() for n in stored if (m := _INSIDE_A_MODEL.match(n))}
    if inside:
        for name in stored:
            if name not in inside:
                dropped[name] = "part of the model that the head was trained in, not of the head"
        original = {n[end:]: n for n, end in inside.items()}
    for name in [n for n in original if n.startswith(_TARGET_PARTS)]:
        dropped[original.pop(name)] = "part of the target, not of the head"
    for prefix in _WRAPPERS * 2:  # they nest
        wrapped = [n for n in original if n.startswith(prefix)]
        stripped = {n.removeprefix(prefix) for n in wrapped}
        whole = len(wrapped) == len(original) or prefix == "model."
        if wrapped and whole and not stripped & (set(original) - set(wrapped)):
            original = {n.removeprefix(prefix): o for n, o in original.items()}
    return {name: stored[o] for name, o in original.items()}, original


def _sha256(file: Path) -> str:
    """Straight from the page cache, a window at a time: reading into a buffer first costs a tenth more."""
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as opened:
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            with mmap.mmap(opened.fileno(), length, access=mmap.ACCESS_READ, offset=start) as window:
                digest.update(window)
    return digest.hexdigest()
