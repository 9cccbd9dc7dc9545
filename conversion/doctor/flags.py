"""Options as `vllm-eagle convert` takes them, and readings by what they compute."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, fields

from ..options import Options
from ..reading import Reading, flags_of


def as_flags(options: Options) -> str:
    """The options as `vllm-eagle convert` takes them, ready to paste."""
    words: list[str] = []
    for each in fields(options):
        value = getattr(options, each.name)
        if value in (None, (), {}):
            continue
        name = f"--{each.name.replace('_', '-')}"
        if each.name == "drop":
            words += [word for tensor in value for word in (name, tensor)]
        elif each.name == "flags":
            shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
            words += [word for k, v in shown.items() for word in ("--set", f"{k}={v}")]
        elif isinstance(value, tuple):
            words += [name, ",".join(map(str, value))]
        else:
            words += [name, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def changed_options(options: Options, base: Options) -> Options:
    """What of `options` goes beyond `base`."""
    more = {k: v for k, v in asdict(options).items() if v != getattr(base, k)}
    if "drop" in more:
        more["drop"] = tuple(n for n in options.drop if n not in base.drop)
    if "flags" in more:
        more["flags"] = {k: v for k, v in options.flags.items() if base.flags.get(k) != v}
    return Options(**more)


def reading_key(reading: Reading, reads: str) -> str:
    """Equal for readings that compute the same, however they were asked for."""
    fusion = [
        reading.tensors[name].load()[0].float().tolist()
        for name in ("fc.weight", "body.input_projection.weight")
        if name in reading.tensors
    ]
    d2t = reading.tensors["d2t"].load().tolist() if "d2t" in reading.tensors else None
    return repr(
        (
            sorted(flags_of(reading.config).items()),
            sorted((n, o) for n, o in reading.used.items() if o != "d2t"),
            fusion,
            d2t,
            reads,
        )
    )
