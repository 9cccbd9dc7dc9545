"""What a training run leaves on disk: checkpoints that appear whole or not at all, a log, its identity.

OUT/                    the trained head, in its producer's layout, with a card
OUT/run/run.json        recipe, target and data: what must be the same to go on
OUT/run/log.jsonl       one JSON object a line
OUT/run/step-00000400/  the newest checkpoints
OUT/run/best-00000400.safetensors    weights of the step that was accepted best
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import HeadError, UsageError
from ..lines import numbered_lines
from .files import disk_errors, read_json, replaced, write_json

_KEPT = 2


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    answer_tokens: int = 0
    #: Wall time spent in steps, over all sittings.
    seconds: float = 0.0
    best_acceptance: float = 0.0
    best_step: int = 0
    best: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The files of one run under `output`/run."""

    def __init__(self, output: Path) -> None:
        self.path = output / "run"
        self.log_file = self.path / "log.jsonl"

    def open(self, identity: dict[str, Any]) -> None:
        """Start a run here, or check that the one here is the same.

        Raises:
            UsageError: the run here has other settings, target or data; its files are left alone.
        """
        file = self.path / "run.json"
        if file.exists():
            found = read_json(file, "The description of a run")
            different = _difference(found, identity)
            if different is not None:
                name, theirs, ours = different
                raise UsageError(
                    f"{self.path.parent} holds a run with {name} {theirs}, now it is {ours}",
                    "A run goes on only with what it was started with",
                    "Choose another --output, or remove that folder to start anew",
                )
            return
        if self.path.parent.is_dir() and any(self.path.parent.iterdir()):
            raise UsageError(
                f"{self.path.parent} is not empty and holds no run",
                "A new folder, or one of an earlier run of this command, was expected",
                "Choose another --output",
            )
        with disk_errors(file, "Nothing was started. Choose another --output"):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(file, identity)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in self.path.glob("step-*") if (p / "progress.json").exists())

    def partial(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into."""
        path = self.path / f".step-{step:08d}.partial"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def commit(self, partial: Path, progress: Progress) -> None:
        """Make the folder `partial` the newest checkpoint, and drop old ones."""
        write_json(partial / "progress.json", asdict(progress))
        final = self.path / partial.name.removeprefix(".").removesuffix(".partial")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for checkpoint in self.checkpoints()[:-_KEPT]:
            shutil.rmtree(checkpoint)
        needed = {self.best(self.read_progress(checkpoint).best_step) for checkpoint in self.checkpoints()}
        for best in self.path.glob("best-*.safetensors"):
            if best not in needed:
                best.unlink()

    def best(self, step: int) -> Path:
        """The file of the weights of `step`, if they were the best so far."""
        return self.path / f"best-{step:08d}.safetensors"

    def discard(self) -> None:
        """Remove what broken-off writes left."""
        for partial in self.path.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink()

    def read_progress(self, checkpoint: Path) -> Progress:
        """The progress stored in `checkpoint`."""
        found = read_json(checkpoint / "progress.json", "The progress of a checkpoint")
        try:
            return Progress(**found)
        except TypeError:
            raise HeadError(f"{checkpoint}/progress.json has unknown keys {sorted(found)}", "", "Remove it") from None

    def append(self, row: dict[str, Any]) -> None:
        """One more line of the log."""
        with self.log_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The log; a line that a crash cut off is left out."""
        if not self.log_file.exists():
            return []
        rows = []
        for _, line in numbered_lines(self.log_file):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def rewind_log(self, step: int) -> None:
        """Drop what the log says of steps behind `step`, which will be run again."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= step]
        with replaced(self.log_file) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _difference(found: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first setting in which two descriptions differ, with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in found if k not in wanted)]:
            if key not in found and not wanted[key]:
                continue  # a setting that is off, and that the version which began the run did not have
            inner = _difference(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
            if inner is not None:
                return inner
        return None
    found, wanted = (list(x) if isinstance(x, tuple) else x for x in (found, wanted))
    return None if found == wanted else (name, _short(found), _short(wanted))


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
