"""What ends a sitting early: a user, a scheduler, a worker that is gone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


def is_lost_worker(error: RuntimeError) -> bool:
    """Whether a collective operation failed because the other side is gone (gloo, NCCL)."""
    text = str(error).lower()
    return any(
        words in text
        for words in ("connection closed", "connection reset", "broken pipe", "timed out", "nccl", "peer", "gloo")
    )


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: nobody can ask
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
