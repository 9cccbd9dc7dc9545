"""Sliding windows: which tokens a head's layers were trained to attend to.

speculators trains within `sliding_window` where `layer_types` says so, and stock vLLM serves so. Other trainers'
layers attend to everything before a token, and their configs name the windows of the target they were copied from.
In the later steps of a chain speculators counts its window from where the chain began; vLLM, and we, from the drafted
token, which is the same but for the oldest few.
"""

from __future__ import annotations

from enum import Enum

from ..errors import HeadError
from .described import Described

_SLIDING = "sliding_attention"


class Windows(Enum):
    """What a trainer's layers make of `sliding_window` and `layer_types`."""

    #: Nothing: they attend to everything.
    IGNORED = "ignored"
    #: What vLLM does: a layer that `layer_types` calls sliding has the window.
    BY_LAYER = "by layer"
    #: Nobody knows the trainer.
    UNKNOWN = "unknown"


def read_window(described: Described, windows: Windows, layers: int, length: int) -> tuple[int | None, list[str]]:
    """The window of a head's `layers` layers, None for none, and notes. `length`: the longest text of the target.

    Raises:
        HeadError: only some of its layers have one, or nobody knows whether they do.
    """
    if windows is Windows.IGNORED:
        return None, []
    kinds, switch = described.get("layer_types"), described.get("use_sliding_window")
    window = described.number("sliding_window") if described.get("sliding_window") != 0 else None
    listed = kinds if isinstance(kinds, list) else []
    if window is None:
        return None, []
    if length and window >= length:
        return None, [f"a window of {window} tokens, and the target reads {length}: it never closes"]
    sliding = [kind == _SLIDING for kind in listed[:layers]]
    if windows is Windows.BY_LAYER and not any(sliding):
        return None, []
    if windows is Windows.UNKNOWN:
        _settle(described, listed, switch, layers, window)
        return None, []
    if len(sliding) < layers or not all(sliding):
        raise HeadError(
            f"{described.where} gives {sum(sliding)} of the head's {layers} layers a window of {window} tokens",
            "vLLM's drafter keeps all layers of a head in one KV cache, so that all have the window or none",
            "Train it with windows in all layers or in none",
        )
    return window, [f"attends within {window} tokens ({described.where})"]


def _settle(described: Described, listed: list, switch: object, layers: int, window: int) -> None:
    """Raise `HeadError` where the window may be the head's, and nobody knows."""
    if switch is False:
        return
    if listed and _SLIDING not in listed:
        return
    raise HeadError(
        f"{described.where} names a window of {window} tokens"
        + (f", and layer_types of {len(listed)} layers; the head has {layers}" if len(listed) > layers else ""),
        "Some trainers' layers attend within it, others' configs have it from their target: nothing here says which",
        f"Pass --set sliding_window={window} or --set sliding_window=null",
    )
