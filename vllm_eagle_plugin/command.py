"""How every command ends: a `HeadError` is one line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .errors import HeadError, UsageError


def run_command(command: Callable[[], Any]) -> None:
    """Run `command`; a `HeadError` of it ends the process with exit code 1, a `UsageError` with 2."""
    try:
        command()
    except HeadError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def run_function(function: Callable[..., Any]) -> None:
    """The same for a module's one function, its options read from the command line."""
    import typer

    run_command(lambda: typer.run(function))
