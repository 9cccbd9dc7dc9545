"""The target's hidden states of a batch: computed, or read back from disk within a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import disk_errors, replaced
from .teacher import States, Teacher


class StateSource:
    """Calls a teacher, and keeps what it says in `folder` until `budget` bytes are used (0: keeps nothing).

    Micro-batches hold the same conversations in every epoch unless lengths tie, so a second epoch finds
    most of them. States are stored in the precision they were computed in, so reading equals computing.
    """

    def __init__(self, teacher: Teacher, folder: Path, budget: int) -> None:
        self._teacher, self._folder, self._budget = teacher, folder, budget
        self.read = self.computed = 0
        self._used = sum(f.stat().st_size for f in self._files()) if budget else 0

    def __call__(self, ids: Tensor) -> States:
        """States of ids [B, T]; see `Teacher`."""
        if not self._budget:
            return self._teacher(ids)
        key = hashlib.sha256(f"{tuple(ids.shape)}".encode() + ids.cpu().numpy().tobytes()).hexdigest()[:32]
        file = self._folder / f"{key}.safetensors"
        found = self._load(file)
        if found is not None:
            self.read += 1
            return States(*(t.to(ids.device) for t in found))
        self.computed += 1
        states = self._teacher(ids)
        # A head that reads the last hidden state needs it once.
        parts = {"last": states.last} | ({} if states.hidden is states.last else {"hidden": states.hidden})
        size = sum(t.numel() * t.element_size() for t in parts.values())
        if self._used + size <= self._budget:
            with disk_errors(self._folder, "Nothing is lost. Pass a smaller --state-cache, or make room"):
                self._folder.mkdir(parents=True, exist_ok=True)
                with replaced(file) as partial:
                    save_file({n: t.contiguous().cpu() for n, t in parts.items()}, partial)
            self._used += file.stat().st_size
        return states

    def _load(self, file: Path) -> States | None:
        if not file.exists():
            return None
        try:
            parts = load_file(file)
            return States(parts.get("hidden", parts["last"]), parts["last"])
        except (SafetensorError, OSError, KeyError):
            return None  # cut off by a crash: computed anew

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("*.safetensors") if self._folder.is_dir() else iter(())
