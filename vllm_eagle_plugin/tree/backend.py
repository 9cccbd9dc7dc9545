"""What trees need of a platform's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch


class Backend(NamedTuple):
    """Functions of attention layers."""

    #: Why a layer cannot carry trees; None if it can.
    unsupported: Callable[[Any], str | None]
    #: Make layers heed what is attached to their metadata, with so many bytes of room behind their caches.
    enable: Callable[[Iterable[Any], int], None]
    #: Move keys and values of layers from slots [n] to slots [n].
    move_slots: Callable[[Iterable[Any], torch.Tensor, torch.Tensor], None]
    #: Blocks of room to make behind the caches. With fewer than a step's trees have leaves, these take turns.
    room: int
    #: The block size above which copying blocks for branches is what trees mostly cost; None: none are copied.
    small_blocks: int | None


def backend(device: torch.device) -> Backend:
    """The backend of a device."""
    if device.type == "cpu":
        from . import cpu_attention, kv_layout

        return Backend(cpu_attention.unsupported, cpu_attention.enable, kv_layout.move_slots, 32, 32)
    from . import cuda_attention

    return Backend(cuda_attention.unsupported, cuda_attention.enable, cuda_attention.move_slots, 0, None)
