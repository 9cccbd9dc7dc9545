"""Writing a converted head: whole or not at all, and the same bytes for the same input."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import HeadError

#: All that a folder of ours holds; with anything else in it, it is not ours to replace.
WRITTEN = {"config.json", "model.safetensors"}


def check_output(output: Path, force: bool) -> None:
    """Refuse to overwrite what is there, unless asked to and it is a head we wrote."""
    if not output.exists():
        above = next(folder for folder in output.absolute().parents if folder.exists())
        if not above.is_dir():
            raise HeadError(f"{above} is a file", f"A folder to put {output.name} in was expected")
        return
    if not output.is_dir():
        raise HeadError(f"{output} is a file", "A folder to write the head to was expected")
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


def write_head(output: Path, config: dict[str, Any], tensors: dict[str, Tensor], force: bool) -> None:
    """Write config.json and model.safetensors to a folder beside `output`, then put it in its place."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            save_file(_separate(tensors), partial / "model.safetensors", {"format": "pt"})
            (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            partial.chmod(0o755)
            check_output(output, force)
            _put(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise HeadError(
            f"{output} cannot be written: {error}", "A writable folder with room was expected", "Choose another folder"
        ) from None


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, no two in one storage: pickles share tied tables, safetensors cannot."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return separate


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
