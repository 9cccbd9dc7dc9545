"""What trees need of attention, and which module of this package has it for a device.

Behind the keys that all rows of a request see, its context, stands a tail: keys of drafted nodes, one after
another. A row sees the tail keys of the nodes that its own continues, and its own. Because parents stand before
children, a row's bitmask says all: how many of its bits are set in front of a key is the key's place on the path, so
the key's position is the context's length and that many more. A sliding window counts such positions.

A device's module is an `Attention`. `reference` is what all of them must compute.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..trees import Trees

logger = logging.getLogger("vllm.eagle_plugin")

#: Where `attach` leaves a tail on a metadata object.
ATTRIBUTE = "eagle_tail"


class Tail(NamedTuple):
    """Query rows of a pass, R for each of B requests, that see their request's context and their own choice of T <=
    63 tail keys behind it.

    Row r of a request is computed for the key at context + `newest` + r: the rows are a request's newest keys.
    """

    #: [B, R] int64 bitmask: bit j is set where the row sees tail key j.
    seen: Tensor
    #: [B] int64 keys in front of the tail, at positions 0 to context - 1.
    context: Tensor
    #: [B] int64 rows of each request; 0: its rows, if it has any, are a chain and none of this tail's.
    counts: Tensor
    #: [B] int64 where a request's first row stands among the pass's query rows.
    first: Tensor
    #: The tail key of row 0; -1 where the context's last key is its own.
    newest: int


def verifying(trees: Trees, base: Tensor, first: Tensor, counts: Tensor | None = None) -> Tail:
    """The rows that verify trees: the root, at position base [B] and row first [B], and the nodes behind it.

    counts: [B] rows of each request; by default its root and all columns of its tree, used or not."""
    rows = pad(trees.ancestors, (1, 0))
    return Tail(rows, base + 1, torch.full_like(base, rows.shape[1]) if counts is None else counts, first, -1)


def drafting(seen: Tensor, drafted: int, context: Tensor) -> Tail:
    """The rows of a level of beams: `seen` [B, k] and `drafted` as in `grow.Beams`, behind context [B] keys; request
    after request."""
    batch, k = seen.shape
    first = torch.arange(batch, device=seen.device) * k
    return Tail(seen, context, torch.full_like(first, k), first, drafted - k)


def attach(metadata: Any, tail: Tail | None) -> None:
    """Have the layers that read this attention metadata heed the tail; None: none.

    Each KV cache group has metadata of its own, and with it its own block table.
    """
    setattr(metadata, ATTRIBUTE, tail)


def attached(metadata: Any) -> Tail | None:
    """What was attached."""
    return getattr(metadata, ATTRIBUTE, None)


class Attention(Protocol):
    """A platform's attention, as hosts use it."""

    #: Blocks of room behind the KV caches that layers want, see `room`; 0: none.
    ROOM: int
    #: The block size above which copying blocks is what branches mostly cost; None: none are copied.
    SMALL_BLOCKS: int | None

    def unsupported(self, layer: Any) -> str | None:
        """Why an attention layer cannot carry trees; None if it can."""

    def enable(self, layers: Iterable[Any], room: int = 0) -> None:
        """Make layers heed what is attached to their metadata. room: bytes of it behind their caches."""

    def move_slots(self, layers: Iterable[Any], source: Tensor, destination: Tensor) -> None:
        """Copy keys and values of slots [n] (block * block size + offset) to slots [n] in the layers' caches. All
        sources are read before anything is written; some slots may stand on both sides at the same place."""


def enable_layers(attention: Attention, layers: Mapping[str, Any], room: int, block_size: int) -> str | None:
    """Enable all layers of a model and its head, by name; or say in the log, and here, why one cannot carry trees."""
    reasons = {name: reason for name, layer in layers.items() if (reason := attention.unsupported(layer))}
    if reasons:
        name, reason = next(iter(reasons.items()))
        logger.warning("Drafting chains, not trees: %s (%d layers, such as %s).", reason, len(reasons), name)
        return reason
    attention.enable(layers.values(), room)
    if attention.SMALL_BLOCKS and block_size > attention.SMALL_BLOCKS:
        small = attention.SMALL_BLOCKS
        logger.info("Each branch of a tree copies a block of keys: --block-size %d makes trees faster.", small)
    return None


def attention_for(device: torch.device) -> Attention:
    """The attention of a device."""
    return cast(Attention, importlib.import_module(".cpu" if device.type == "cpu" else ".flash", __name__))
