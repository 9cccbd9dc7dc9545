"""`bench live`: what a running server accepts, now and since it started."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..errors import HeadError
from .remote import scrape, speculative_counters
from .session import Counters

#: Figures "now" cover the scrapes of so many seconds.
WINDOW = 30.0
GENERATED, RUNNING, WAITING = (
    "vllm:generation_tokens_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
)


@dataclass(frozen=True)
class Sample:
    """One scrape."""

    time: float
    counters: Counters
    generated: float
    running: int
    waiting: int


def sample(url: str) -> Sample:
    """Scrape once.

    Raises:
        HeadError: no server, no metrics, or no speculation there.
    """
    metrics = scrape(url)
    counters = speculative_counters(metrics)
    if counters is None:
        raise HeadError(
            f"the server at {url} does not speculate",
            "Its /metrics have no vllm:spec_decode_* counters",
            "Start it with --speculative-config",
        )
    counts = (int(metrics.get(RUNNING, 0)), int(metrics.get(WAITING, 0)))
    return Sample(time.monotonic(), counters, metrics.get(GENERATED, 0.0), *counts)


def figures(counted: Counters) -> dict[str, Any]:
    """vLLM's names for what some counters say; null where nothing was drafted."""
    drafts = counted.drafts
    return {
        "spec_decode_acceptance_length": 1 + counted.accepted / drafts if drafts else None,
        "spec_decode_acceptance_rate": 100 * counted.accepted / counted.draft_tokens if counted.draft_tokens else None,
        "spec_decode_num_drafts": drafts,
        "spec_decode_draft_tokens": counted.draft_tokens,
        "spec_decode_accepted_tokens": counted.accepted,
        "spec_decode_per_position_acceptance_rates": [n / drafts for n in counted.per_position] if drafts else [],
    }


def between(first: Sample, last: Sample) -> dict[str, Any]:
    """Figures of the time between two scrapes. A restarted server counts from 0 again: then since its start."""
    grown = last.counters - first.counters
    generated = last.generated - first.generated
    if grown.drafts < 0 or generated < 0:
        grown, generated = last.counters, last.generated
    seconds = last.time - first.time
    return {
        **figures(grown),
        "seconds": seconds,
        "accepted_tokens_per_second": grown.accepted / seconds if seconds else 0.0,
        "draft_tokens_per_second": grown.draft_tokens / seconds if seconds else 0.0,
        "output_tokens_per_second": generated / seconds if seconds else 0.0,
    }


def once(url: str, interval: float) -> dict[str, Any]:
    """Two scrapes, `interval` seconds apart, as JSON."""
    first = sample(url)
    time.sleep(interval)
    last = sample(url)
    return {
        "schema_version": 1,
        "kind": "live",
        "url": url,
        "since_start": figures(last.counters),
        "now": between(first, last),
        "num_requests_running": last.running,
        "num_requests_waiting": last.waiting,
    }


def follow(url: str, interval: float, console: Console) -> None:
    """Show figures until ctrl-C.

    Raises:
        HeadError: the server cannot be read (any more).
    """
    samples = deque([sample(url)])
    with Live(view(url, samples), console=console, refresh_per_second=4, screen=console.is_terminal) as shown:
        try:
            while True:
                time.sleep(interval)
                samples.append(sample(url))
                while len(samples) > 2 and samples[-1].time - samples[1].time >= WINDOW:
                    samples.popleft()
                shown.update(view(url, samples))
        except KeyboardInterrupt:
            return


def view(url: str, samples: deque[Sample]) -> Group:
    """The terminal view."""
    last = samples[-1]
    start, now = figures(last.counters), between(samples[0], last)
    table = Table(f"last {now['seconds']:.0f} s", "now", "since start", title=url, title_justify="left")
    for label, name, digits in (
        ("acceptance length", "spec_decode_acceptance_length", 3),
        ("acceptance rate, %", "spec_decode_acceptance_rate", 1),
        ("drafts", "spec_decode_num_drafts", 0),
        ("accepted tokens/s", "accepted_tokens_per_second", 1),
        ("drafted tokens/s", "draft_tokens_per_second", 1),
        ("output tokens/s", "output_tokens_per_second", 1),
    ):
        table.add_row(label, *(_number(of.get(name), digits) for of in (now, start)))
    table.add_row("requests running, waiting", f"{last.running}, {last.waiting}", "")
    bars = Table.grid(padding=(0, 1))
    shown = now if now["spec_decode_num_drafts"] else start
    for i, rate in enumerate(shown["spec_decode_per_position_acceptance_rates"], 1):
        bars.add_row(f"position {i}", ProgressBar(total=1, completed=rate, width=40), f"{rate:.1%}")
    quiet = Text("nothing drafted yet" if not start["spec_decode_num_drafts"] else "ctrl-C ends", style="dim")
    return Group(table, bars, quiet)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
