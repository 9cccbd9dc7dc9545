"""How every command ends: a `HeadError` is one line on stderr, SIGTERM the same as Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from .errors import HeadError, UsageError


def run_command(command: Callable[[], Any]) -> None:
    """Run `command`; a `HeadError` of it ends the process with exit code 1, a `UsageError` with 2."""
    with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except HeadError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def run_function(function: Callable[..., Any]) -> None:
    """The same for a module's one function, its options read from the command line."""
    import typer

    run_command(lambda: typer.run(function))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What a scheduler sends must not skip what Ctrl-C does not: keeping results, ending vLLM's other processes."""
    raise KeyboardInterrupt
