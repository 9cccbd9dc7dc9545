"""A head that is good for nothing: what speculation costs where it cannot help."""

from __future__ import annotations

import shutil
from pathlib import Path

from vllm_eagle_plugin.errors import UsageError


def write_worthless(head: str, folder: Path) -> Path:
    """A copy of a converted head whose matrices are noise, as large as its own; norms and token maps stay.

    Raises:
        UsageError: the head is not a folder.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    if not Path(head).is_dir():
        raise UsageError(
            f"{head} is no folder", "One with a converted head was expected, to copy it with random weights"
        )
    shutil.rmtree(folder, ignore_errors=True)  # what was made of another head
    shutil.copytree(head, folder)
    noise = torch.Generator().manual_seed(0)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dim() == 2:
                scale = tensor.float().std()
                tensors[name] = (torch.randn(tensor.shape, generator=noise) * scale).to(tensor.dtype)
        save_file(tensors, file, metadata=metadata)
    return folder
