"""An account of every key of a head's config, as strict as that of its tensors.

Each ends as used (for what), as changing nothing here (why), or as the cause of a refusal. A key that nobody here
knows is named in a note: configs are full of what trainers write for themselves. One that stands for arithmetic which
no layer here does is refused, unless the head's trainer is known and its layers do not read it: then it came with the
config of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..configs import HeadConfig, TransformerHeadConfig
from ..errors import HeadError
from .described import Described
from .keys import OF_ATTENTION, Role, key_of
from .options import Options
from .reading import Reading


def account(config: Described, reading: Reading, options: Options, trainer: str) -> dict[str, str]:
    """What became of each key, by its path. `trainer`: whose layers read the config, empty if nobody knows.

    Raises:
        HeadError: a key changes what is computed, and nothing here computes it.
    """
    found: dict[str, str] = {}
    copied: list[str] = []
    unknown: list[str] = []
    for path, name, value in _leaves(config.values, "", reading.config):
        key = key_of(name)
        if value is None or value in ("", [], {}):
            found[path] = "says nothing"
        elif path in config.read and (key is None or key.role not in (Role.NOTHING, Role.TENSORS)):
            found[path] = f"used: {key.means if key else 'by its reader'}"
        elif key is None:
            found[path] = "unknown"
            if value not in (False, 0):
                unknown.append(f"{path} {_short(value)}")
        elif key.role is Role.NOTHING or key.role is Role.OBJECT or key.role is Role.TENSORS:
            found[path] = f"changes nothing: {key.means}"
        elif _neutral(name, value, key.neutral, reading.config):
            found[path] = f"changes nothing: {key.means}, but not with this value"
        elif name in options.flags:
            found[path] = "set by the user (--set)"
        elif trainer:
            found[path] = f"changes nothing: {key.means}, but {trainer} does not read it"
            copied.append(name)
        else:
            raise _refused(path, name, value, key.means, reading.config)
    if copied:
        reading.notes.append(f"{trainer} does not read {', '.join(dict.fromkeys(copied))}: copied from its target")
    if unknown:
        reading.notes.append(f"config.json has keys that nobody here knows: {', '.join(unknown)}")
    return found


def _leaves(values: Mapping[str, Any], path: str, config: HeadConfig) -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of every key; objects whose keys count one by one are opened."""
    for name, value in values.items():
        key = key_of(name)
        if key is not None and key.role is Role.OBJECT and isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.", config)
        else:
            yield path + name, name, value


def _neutral(name: str, value: Any, neutral: tuple[Any, ...], config: HeadConfig) -> bool:
    """Whether a value leaves a head what it is."""
    if any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral):
        return True
    if not isinstance(config, TransformerHeadConfig) or config.head_dim is None:
        return name in OF_ATTENTION or value == getattr(config, name, None)
    if name == "query_pre_attn_scalar":
        return value == config.head_dim
    if name in ("attention_multiplier", "attn_scale", "attention_scale"):
        return isinstance(value, float) and abs(value - config.head_dim**-0.5) < 1e-6
    if name == "hidden_activation":
        return value == config.hidden_act
    if name in ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon"):
        return value == config.rms_norm_eps
    if name in ("use_qk_norm", "qk_norm", "qk_layernorm"):
        return bool(value) == config.qk_norm
    return False


def _refused(path: str, name: str, value: Any, means: str, config: HeadConfig) -> HeadError:
    settable = name in config.to_dict()
    return HeadError(
        f"config.json says {path} is {_short(value)}: a key that {means}",
        "Nothing here says whose layers the head was trained with, and whether they read it; none that are served here do",
        (f"Pass --set {name}=VALUE if they do; if" if settable else "If")
        + " it only came with the config of the target, remove it from config.json, or name the trainer with --producer",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
