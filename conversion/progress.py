"""A bar for bytes on stderr, where somebody watches and there is enough to wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

#: Heads smaller than this are written before a bar could be read.
_WORTH_A_BAR = 200 << 20


@contextlib.contextmanager
def writing() -> Iterator[Callable[[int, int], None]]:
    """A function `(done, total)` that moves the bar."""
    columns = ("writing", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing", visible=False)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=total >= _WORTH_A_BAR)

        yield tell
