"""Where a figure comes from: hardware, versions, load, and the command that made it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..compat.versions import vllm_distribution
from .schema import Environment

PACKAGES = ("vllm-eagle-plugin", "torch", "transformers")


def environment(load_before: float) -> Environment:
    """This machine now. `load_before`: the one-minute load average at the start of the run."""
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command(),
        hardware=hardware(),
        versions=versions(),
        load_average=[round(load_before, 2), round(load(), 2)],
    )


def load() -> float:
    """The one-minute load average, this program's own work included."""
    return os.getloadavg()[0]


def command() -> str:
    """The command line as a user would type it."""
    program = Path(sys.argv[0]).name
    return shlex.join(["vllm-eagle" if program in ("__main__.py", "cli.py") else program, *sys.argv[1:]])


def hardware() -> dict[str, Any]:
    """Processor, memory, accelerator."""
    names = re.findall(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    memory = re.findall(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    about: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if memory:
        about["memory_gib"] = round(int(memory[0]) / 2**20)
    if "OMP_NUM_THREADS" in os.environ:
        about["omp_num_threads"] = os.environ["OMP_NUM_THREADS"]
    gpus = _gpus()
    return about | ({"gpus": gpus} if gpus else {})


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def versions() -> dict[str, str]:
    """Versions of Python, vLLM and the packages that decide what runs."""
    name, number = vllm_distribution() or ("vllm", "unknown")
    numbers = {"python": platform.python_version(), name: number}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
