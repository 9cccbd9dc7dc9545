"""Brings a worker's counters into the /metrics of the front end, another process.

vLLM's own metrics are made in the front end, from what the scheduler reports. Here counts go through files: the
front end names a folder in the environment, which its workers inherit, and reads the folder whenever metrics are
asked for. Where PROMETHEUS_MULTIPROC_DIR is set, prometheus_client does all of this itself.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

#: Environment variable that names the folder.
FOLDER = "EAGLE_METRICS_FOLDER"

_opened: tuple[int, tempfile.TemporaryDirectory[str]] | None = None


def open_relay() -> None:
    """In the front end, before there are workers. Idempotent."""
    global _opened
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ or Path(os.environ.get(FOLDER, "/nowhere")).is_dir():
        return
    folder = tempfile.TemporaryDirectory(prefix="vllm-eagle-metrics-")
    _opened = os.getpid(), folder
    os.environ[FOLDER] = folder.name
    MultiProcessCollector(REGISTRY, folder.name)


def relay_here() -> Relay | None:
    """Where this process is to count; None: in its own registry, for it is the front end or has none of ours."""
    folder = os.environ.get(FOLDER)
    own = _opened is not None and _opened[0] == os.getpid()
    if folder is None or own or "PROMETHEUS_MULTIPROC_DIR" in os.environ or not Path(folder).is_dir():
        return None
    return Relay(Path(folder))


class Relay:
    """Counters of this process in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._file = MmapedDict(str(folder / f"counter_{os.getpid()}.db"))
        self._keys: dict[tuple[str, str], str] = {}

    def add(self, name: str, text: str, label: str, value: str, amount: int) -> None:
        """Count `amount` more of the counter `name`, described by `text`, where `label` is `value`."""
        key = self._keys.get((name, value))
        if key is None:
            key = self._keys[name, value] = mmap_key(name, f"{name}_total", [label], [value], text)
        counted, _ = self._file.read_value(key)
        self._file.write_value(key, counted + amount, 0.0)
