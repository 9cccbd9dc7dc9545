"""Writing a converted head: whole or not at all, and the same bytes for the same input."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..errors import HeadError


def check_output(output: Path, force: bool) -> None:
    """Refuse to overwrite what is there, unless asked to and it is a head we wrote."""
    if not output.exists():
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
    if not config.exists() or "eagle_provenance" not in config.read_text(errors="replace"):
        raise HeadError(
            f"{output} holds something other than a converted head",
            "--force replaces only what vllm-eagle wrote",
            "Choose another folder, or remove this one",
        )


def write_head(output: Path, config: dict[str, Any], tensors: dict[str, Tensor], force: bool) -> None:
    """Write config.json and model.safetensors to a folder beside `output`, then put it in its place."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        save_file(
            {n: tensors[n].contiguous() for n in sorted(tensors)}, partial / "model.safetensors", {"format": "pt"}
        )
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        check_output(output, force)
        if output.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
            output.rename(replaced / "head")
            partial.rename(output)
            shutil.rmtree(replaced)
        else:
            partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
