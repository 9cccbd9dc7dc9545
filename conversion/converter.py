"""From a trained head to a folder that vLLM serves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import HeadError
from ..targets.hub import commit_of
from ..targets.target import Target, read_target
from .adapter import adapter_files
from .detect import Detection
from .one_word import one_word
from .options import Options
from .reading import Reading
from .route import Layout, choose_layout
from .source import Source
from .understand import open_source, understand
from .values import check_values
from .write import check_output, write_head

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Conversion:
    """What was found, what was made of it, and how to serve it."""

    detection: Detection
    reading: Reading
    layout: Layout
    target: Target
    output: Path
    written: bool
    provenance: dict[str, Any] = field(default_factory=dict)
    #: Figures of the verification; empty if there was none.
    verification: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """num_speculative_tokens to begin with."""
        return self.reading.config.max_draft_tokens or 3

    @property
    def serve_command(self) -> str:
        """The line to paste into a shell."""
        speculative = {
            "method": self.reading.config.method,
            "model": str(self.output),
            "num_speculative_tokens": self.tokens,
            **self.layout.speculative,
        }
        return f"vllm serve {shlex.quote(self.target.name)} --speculative-config {shlex.quote(json.dumps(speculative))}"

    @property
    def serve_alone(self) -> str:
        """The same in one word: the head names its target (`one_word`)."""
        return f"vllm serve {shlex.quote(str(self.output))}"

    def written_config(self) -> dict[str, Any]:
        """What is written as config.json, but for the provenance."""
        parallel = bool(self.layout.speculative.get("parallel_drafting"))
        return {**self.layout.config, **one_word(self.reading.config.method, self.tokens, parallel, self.target)}

    def as_json(self) -> dict[str, Any]:
        return {
            "producer": self.detection.reader.name,
            "sure": self.detection.sure,
            "evidence": self.detection.evidence,
            "notes": self.reading.notes,
            "used": self.reading.used,
            "dropped": self.reading.dropped,
            "config": self.reading.keys,
            "method": self.reading.config.method,
            "architecture": self.layout.config["architectures"][0],
            "needs_plugin": self.layout.needs_plugin,
            "why": self.layout.why,
            "output": str(self.output),
            "written": self.written,
            "serve": self.serve_command,
            "serve_alone": self.serve_alone,
            "verification": self.verification,
        }


def convert(
    head: str | Path,
    target_name: str,
    output: Path,
    options: Options | None = None,
    force: bool = False,
    dry_run: bool = False,
    config: Path | None = None,
    revision: str | None = None,
    tokenizer: bool = False,
    verify: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Conversion:
    """Read the head at `head`, check it against its target, and write it to `output`.

    `progress(done, total)` is told of bytes written. With `tokenizer` the target's goes along. With `verify`
    the result must draft as the trained head does, in vLLM where it is installed.

    Raises:
        HeadError: the head, its target or an option is wrong; nothing is written then.
    """
    options = options or Options()
    if not dry_run:
        check_output(output, force)
    source = open_source(head, config, revision)
    target = read_target(target_name)
    detection, reading = understand(source, target, options)
    layout = choose_layout(reading, target)
    done = Conversion(detection, reading, layout, target, output, not dry_run)
    if dry_run:
        for name, tensor in layout.tensors.items():
            check_values(name, tensor)
        return done
    total, count = sum(t.numel * t.dtype.itemsize for t in layout.tensors.values()), 0

    def tell(written: int) -> None:
        nonlocal count
        count += written
        progress(count, total)

    with ThreadPoolExecutor(1) as pool:
        read = replace(source, files=(*source.files, *adapter_files(options.adapter)))
        checksums = pool.submit(lambda: read.checksums)  # reads every file once more, so beside the writing
        write_head(
            output,
            lambda: {**done.written_config(), "eagle_provenance": provenance(done, source, checksums.result())},
            layout.tensors,
            force,
            extra=_tokenizer_files(target) if tokenizer else (),
            check=verification(done, source, options, config) if verify else None,
            progress=tell,
        )
    return done


def verification(done: Conversion, source: Source, options: Options, config: Path | None) -> Callable[[Path], None]:
    """For `write_head`: verify the finished folder, and put the figures into its provenance and into `done`."""

    def check(folder: Path) -> None:
        from .verify import verify_source

        found = verify_source(source, done.target, folder, options, config=config)
        if not found.passed:
            raise HeadError(
                f"the written head does not compute what the trained one does: {found.why} ({found.engine})",
                "Both must draft the same, token for token",
                "Nothing was written: it would be served wrong. If a flag of its config is not what it was trained with, "
                "`vllm-eagle doctor` measures which; otherwise report this head with this message",
            )
        done.verification.update(found.as_json())
        file = folder / "config.json"
        written = json.loads(file.read_text(encoding="utf-8"))
        written["eagle_provenance"]["verification"] = done.verification
        file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    return check


def provenance(done: Conversion, source: Source, checksums: dict[str, str]) -> dict[str, Any]:
    """Where a head is from and what was decided about it, for its config.json."""
    reading = done.reading
    found = {
        "converter": f"vllm-eagle-plugin {__version__}",
        "producer": done.detection.reader.name,
        "sure": done.detection.sure,
        "evidence": done.detection.evidence,
        "notes": reading.notes,
        "used": reading.used,
        "dropped": reading.dropped,
        "config": reading.keys,
        "files": checksums,
        "method": reading.config.method,
        "target": done.target.fingerprint(),
        "tensors": {name: list(tensor.shape) for name, tensor in sorted(done.layout.tensors.items())},
    }
    for name, commit in (("revision", commit_of(source.path)), ("target_revision", commit_of(done.target.folder))):
        if commit is not None:
            found[name] = commit
    return found


def _tokenizer_files(target: Target) -> tuple[Path, ...]:
    found = tuple(target.folder / name for name in _TOKENIZER if (target.folder / name).is_file())
    if not found:
        raise HeadError(f"the target {target.name} has no tokenizer files", "They were to be copied", "Leave it out")
    return found
