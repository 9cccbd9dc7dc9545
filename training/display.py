"""A run as it goes: a live line on a terminal, one line for each measurement elsewhere. On stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as LiveProgress

from .agreement import Agreement
from .data import Shard


class Display:
    """Progress of a run from step `done` to `total`; silent where `shown` is false."""

    def __init__(self, shown: bool, total: int, done: int, name: str) -> None:
        self._console = Console(stderr=True, quiet=not shown, highlight=False)
        self._live = LiveProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._live.add_task(name, total=total, completed=done, figures="")
        self._done, self._total = done, total
        self._tokens: tuple[int, float] | None = None
        self._rate = 0.0
        self._loss = float("nan")

    def __enter__(self) -> Self:
        self._live.__enter__()
        if self._done:
            self._console.print(f"going on behind step {self._done} of {self._total}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def step(self, row: dict[str, Any]) -> None:
        """A step is done; `row` is its line of the log."""
        tokens, seconds = row["answer_tokens"], row["seconds"]
        if self._tokens is not None and seconds > self._tokens[1]:
            self._rate = (tokens - self._tokens[0]) / (seconds - self._tokens[1])
        self._tokens = self._tokens or (tokens, seconds)
        self._loss = row["loss"]
        figures = f"loss {row['loss']:.3f}  argmax {row['argmax_agreement'][0]:.0%}  {self._rate:,.0f} tok/s"
        self._done = row["step"]
        self._live.update(self._task, completed=self._done, figures=figures)

    def measured(self, found: Agreement | None) -> None:
        """Acceptance was measured on the held-out conversations."""
        if found is not None:
            rates = " ".join(f"{rate:.0%}" for rate in found.per_position)
            self._console.print(
                f"step {self._done}/{self._total}  loss {self._loss:.3f}  "
                f"held-out acceptance length {found.acceptance_length:.3f} ({rates})  {self._rate:,.0f} tok/s",
                soft_wrap=True,
            )


def data_progress(shards: Iterator[Shard], tokens: int) -> Iterator[Shard]:
    """Show shards as they come, against the `tokens` wanted: tokens per second and time left."""
    console = Console(stderr=True, highlight=False)
    live = LiveProgress(
        TextColumn("writing"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens  {task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )
    written, started = 0, time.monotonic()
    with live:
        task = live.add_task("", total=tokens, figures="")
        for shard in shards:
            if shard.found:
                started = time.monotonic()
                live.update(task, total=tokens, completed=shard.total_tokens)
            else:
                written += shard.answer_tokens
                rate = written / max(1e-9, time.monotonic() - started)
                live.update(task, completed=min(tokens, shard.total_tokens), figures=f"{rate:,.0f} tok/s")
                left = max(0, tokens - shard.total_tokens) / rate if rate else 0
                if not console.is_terminal:
                    console.print(
                        f"shard {shard.number}: {shard.conversations} conversations, {shard.total_tokens:,} tokens "
                        f"in all, {rate:,.0f} tok/s, {left / 60:,.0f} min left",
                        soft_wrap=True,
                    )
            yield shard
