"""Several engines, at work on the same blocks of questions in turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import HeadError
from .acceptance import step_times
from .methods import Method
from .prompts import Question
from .records import Record
from .schema import Figure
from .session import Sampling, Step
from .speed_schema import Row, impossible
from .statistics import Array, interval, ratio_interval, resample
from .summary import acceptance, latencies
from .worker import Worker


@dataclass
class Block:
    """One block of questions, answered by one engine: all of it asked at once. Times are of its own turns."""

    records: list[Record]
    #: Which start of the engine answered.
    start: int = 0

    @property
    def seconds(self) -> float:
        return max(r.latency for r in self.records)

    @property
    def tokens(self) -> int:
        return sum(r.output_tokens for r in self.records)


@dataclass
class Trial:
    """All blocks of one method at one concurrency."""

    method: Method
    concurrency: int
    blocks: list[Block] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [record for block in self.blocks for record in block.records]

    def add(self, trial: Trial, start: int) -> None:
        """Take in what another start of the engine answered."""
        self.blocks += [replace(block, start=start) for block in trial.blocks]
        self.steps += trial.steps

    def sums(self) -> Array:
        """[n, 2] tokens and seconds of each start of the engine, of each block where there was one start: what is
        resampled. One process is some percent faster than another at the same work, in all of its blocks."""
        several = len({block.start for block in self.blocks}) > 1
        sums: dict[int, Array] = {}
        for i, block in enumerate(self.blocks):
            unit = block.start if several else i
            sums[unit] = sums.get(unit, np.zeros(2)) + np.array([block.tokens, block.seconds])
        return np.array([*sums.values()]).reshape(-1, 2)


def interleaved(
    workers: dict[str, Worker],
    methods: Sequence[Method],
    questions: Sequence[Question],
    sampling: Sampling,
    concurrency: int,
    rounds: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Trial]]:
    """Run everything; yields the trials after each block that *all* methods have answered.

    They take turns of a few steps (see `turns`), in an order that rotates from block to block. Prefixes cached in an
    earlier round are dropped.

    Raises:
        HeadError: an engine failed, or refused a question.
    """
    trials = {method.name: Trial(method, concurrency) for method in methods}
    for worker in workers.values():
        worker.run(questions[:1], Sampling(max_tokens=8), 1, lambda record: None)
        worker.take_steps()
    turn = 0
    for _ in range(rounds):
        for worker in workers.values():
            worker.forget()
        for block in _blocks(questions, concurrency):
            order = [methods[(turn + i) % len(methods)].name for i in range(len(methods))]
            answered = _answer(workers, order, block, sampling, concurrency, advance)
            for name, (done, steps) in answered.items():
                trials[name].blocks.append(done)
                trials[name].steps += steps
            turn += 1
            yield trials


def _blocks(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    """Blocks of `size`; a shorter rest is left out, since another batch size is another measurement."""
    if len(questions) < size:
        raise HeadError(
            f"{len(questions)} questions for a concurrency of {size}", "At least as many were expected", "Ask more"
        )
    for start in range(0, len(questions) - size + 1, size):
        yield questions[start : start + size]


def _answer(
    workers: dict[str, Worker],
    order: Sequence[str],
    block: Sequence[Question],
    sampling: Sampling,
    concurrency: int,
    advance: Callable[[], None],
) -> dict[str, tuple[Block, list[Step]]]:
    """A block, answered by all engines in turns of a few steps each."""
    turns = {name: workers[name].in_turns(block, sampling, concurrency) for name in order}
    records: dict[str, list[Record]] = {name: [] for name in order}
    while turns:
        for name in list(turns):
            finished = next(turns[name], None)
            if finished is None:
                del turns[name]
                advance()
            else:
                records[name] += finished
    return {
        name: (Block(sorted(answered, key=lambda r: r.question)), workers[name].take_steps())
        for name, answered in records.items()
    }


def row(trial: Trial, plain: Trial, answers: Mapping[str, int] | None = None) -> Row:
    """A trial as a row, against plain decoding's; `answers`: how many are the same, tied and wrong."""
    records, k = trial.records, trial.method.k
    figures = acceptance(records, k) if k else None
    tokens, seconds = trial.sums().T
    speed = tokens.sum() / seconds.sum()
    bounds = ratio_interval(tokens, seconds) or (None, None)
    faster = speedup(trial, plain)
    latency = latencies(records)
    made = Row.model_construct(
        None,
        name=trial.method.name,
        speculative_config=trial.method.speculative,
        num_speculative_tokens=k,
        concurrency=trial.concurrency,
        output_tokens=int(tokens.sum()),
        tokens_per_second=Figure(value=float(speed), low=bounds[0], high=bounds[1]),
        speedup=faster,
        median_ttft_ms=latency["median_ttft_ms"],
        mean_itl_ms=latency["mean_itl_ms"],
        mean_tpot_ms=latency["mean_tpot_ms"],
        acceptance=figures,
        step_ms=step_times(trial.steps),
        answers=len(records),
        **(answers or {}),
    )
    made.impossible = impossible(made)
    per_step = figures.tokens_per_step.value if figures else None
    made.implied_overhead = per_step / faster.value - 1 if per_step and faster.value else None
    return Row.model_validate(made.model_dump())


def speedup(trial: Trial, plain: Trial) -> Figure:
    """Ratio of the two speeds, resampled over what both answered, see `Trial.sums`."""
    sums = np.concatenate([trial.sums(), plain.sums()], 1)

    def ratio(s: Array) -> Array:
        return (s[..., 0] / s[..., 1]) / (s[..., 2] / s[..., 3])

    value = float(ratio(sums.sum(0)))
    if trial is plain or len(sums) < 2:
        return Figure(value=value)
    low, high = interval(ratio(resample(len(sums)) @ sums), len(sums))
    return Figure(value=value, low=float(low), high=float(high))
