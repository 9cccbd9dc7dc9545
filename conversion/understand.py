"""From a path to a reading: find the producer, settle what files leave open, and check the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HeadError, UsageError
from ..targets.hub import commit_of, download
from ..targets.target import Target
from .accounting import account
from .adapter import adapted
from .described import Described
from .detect import Detection, detect
from .options import DTYPES, Options
from .quantised import densified
from .reading import Reader, Reading, flags_of
from .renaming import without
from .source import Source, read_source

#: What is downloaded of a head: never code.
_HEAD_FILES = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.npz", "*/*.safetensors", "*/*.json", "*/*.pt"]
_OPTION_NAMES = ("token_pairing", "aux_ids", "aux_ids_convention", "rope_theta", "d2t", "fc_order", "embedding", "token_map")  # fmt: skip


def open_source(head: str | Path, config: Path | None = None, revision: str | None = None) -> Source:
    """The head at a path, or of a hub id."""
    path = Path(head)
    if not path.exists() and str(head).count("/") == 1 and not str(head).startswith((".", "/", "~")):
        path = download(str(head), _HEAD_FILES, revision)
    elif revision is not None and commit_of(path) is None:
        raise UsageError(f"--revision {revision} was given for {head}", "A hub id was expected with it", "Leave it out")
    return densified(read_source(path, config))


def understand(source: Source, target: Target, options: Options) -> tuple[Detection, Reading]:
    """Read `source` for `target` and check the result, without looking at every weight.

    Raises:
        HeadError: no reader fits, several fit and differ, or the head is wrong.
    """
    source = adapted(without(source, options.drop), options.adapter)
    detection = detect(source, options.producer)
    _check_options(detection.reader, options)
    source = replace(source, config=Described(source.config.values))  # to see which keys its reader asks for
    reading = _read(detection, source, target, options)
    trainer = detection.reader.name if detection.trainer_known else ""
    reading.keys = account(source.config, reading, options, trainer)
    _settle(detection, source, target, options, reading)
    _override(reading, options)
    if options.dtype is not None:
        dtype = DTYPES[options.dtype]
        reading.tensors = {
            n: t.changed(lambda w: w.to(dtype)) if t.dtype.is_floating_point else t for n, t in reading.tensors.items()
        }
        reading.notes.append(f"weights written as {options.dtype}")
    reading.check()
    return detection, reading


def _read(detection: Detection, source: Source, target: Target, options: Options) -> Reading:
    try:
        return detection.reader.read(source, target, options)
    except HeadError as error:
        if not detection.rivals or isinstance(error, UsageError):
            raise
        names = [reader.name for reader in (detection.reader, *detection.rivals)]
        raise HeadError(
            f"the head looks like {' and like '.join(names)}; read as the first, {error.found}",
            error.expected,
            f"{error.action}; or pass the right --producer",
        ) from None


def _settle(detection: Detection, source: Source, target: Target, options: Options, reading: Reading) -> None:
    """Rivals with as much evidence are fine if they mean the same head."""
    for rival in detection.rivals:
        try:
            other = rival.read(source, target, options)
        except HeadError:
            continue
        mine, theirs = flags_of(reading.config), flags_of(other.config)
        differing = sorted(k for k in mine if mine[k] != theirs.get(k))
        if differing or reading.used != other.used:
            shown = ", ".join(f"{k}: {mine[k]} or {theirs.get(k)}" for k in differing) or "which tensors are used"
            raise HeadError(
                f"the head looks like {detection.reader.name} and like {rival.name}, which differ in {shown}",
                "One reading was expected",
                f"Pass --producer {detection.reader.name} or --producer {rival.name}; `vllm-eagle doctor` measures which",
            )


def _override(reading: Reading, options: Options) -> None:
    """Flags that the user knows better than the head's files."""
    flags = flags_of(reading.config)
    for name, value in options.flags.items():
        if name not in flags or name in ("architectures", "model_type", "vocab_size", "hidden_size"):
            known = ", ".join(k for k in sorted(flags) if not k.startswith("_"))
            raise UsageError(f"--set {name} names no flag of this head", f"One of {known} was expected", "Correct it")
        _set(reading.config, name, value)
        reading.notes.append(f"{name} set to {value!r} (--set)")


def _set(config: Any, name: str, value: Any) -> None:
    from ..preflight import check_types

    check_types(type(config), {name: value})
    setattr(config, name, value)


def _check_options(reader: Reader, options: Options) -> None:
    for name in _OPTION_NAMES:
        if getattr(options, name) is not None and name not in reader.options:
            raise HeadError(
                f"--{name.replace('_', '-')} was given for a {reader.name} head",
                "It changes nothing in heads of this producer",
                "Leave the option out",
            )
