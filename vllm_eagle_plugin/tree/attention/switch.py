"""Attention layers that heed masks in the passes that have some, and are vLLM's own in all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Switch:
    """Turns layers that a backend's `enable` has been through.

    A pass without masks should cost what it costs without us. Weights have driven all else out of the caches by
    the time a layer attends, so that even one more call in each layer is felt.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        # Each such class derives from nothing but the one that it stands in for.
        self._impls = [(layer.impl, type(layer.impl), type(layer.impl).__base__) for layer in layers]
        self._on = True

    def turn(self, on: bool) -> None:
        """Whether the layers heed what is attached to their metadata, from their next pass on."""
        if on == self._on:
            return
        self._on = on
        for impl, heeding, stock in self._impls:
            impl.__class__ = heeding if on else stock
