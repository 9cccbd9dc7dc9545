"""`bench acceptance`: ask, count, and say how far the figures can be trusted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from typing import Any, Literal, cast

from rich.console import Console
from rich.progress import Progress

from ..errors import HeadError
from .environment import environment, load
from .methods import Method, head_sha256
from .prompts import Question, fingerprint
from .records import Record
from .remote import DETAILED_FLAG
from .schema import Acceptance, AcceptanceResult, Eagle, Figure, StepTimes, Workload
from .session import Counters, Done, Sampling, Session, Step, nothing_yet
from .summary import acceptance, by_category, by_output_position, by_prompt_length, histograms, latencies
from .worker import Worker, open_workers

WARM_UP_TOKENS = 8
Source = Literal["records", "counters"]


@dataclass
class Run:
    """What a run left behind."""

    records: list[Record] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    counted: Counters | None = None
    seconds: float = 0.0
    stopped: str | None = None


@contextlib.contextmanager
def one_engine(target: str, method: Method, options: dict[str, Any]) -> Iterator[Worker]:
    """An engine that decodes by `method`.

    Raises:
        HeadError: it did not start.
    """
    with open_workers(target, {method.name: method.speculative}, options) as workers:
        yield workers[method.name]


def workload(
    session: Session,
    target: str,
    head: str | None,
    questions: Sequence[Question],
    prompts: str,
    sampling: Sampling,
    concurrency: int,
    all_turns: bool = False,
) -> Workload:
    """What `session` is going to be asked, for the result."""
    settings = session.describe()
    return Workload(
        target=target,
        method=settings["method"],
        head=head,
        head_sha256=head_sha256(head),
        num_speculative_tokens=session.k,
        prompts=prompts,
        prompts_sha256=fingerprint(list(questions)),
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        concurrency=concurrency,
        all_turns=all_turns,
        seeds=list(sampling.seeds),
        engine={name: value for name, value in settings.items() if name != "method"},
    )


def measure(
    session: Session, questions: Sequence[Question], sampling: Sampling, concurrency: int, workload: Workload
) -> AcceptanceResult:
    """Ask `questions` and report on acceptance.

    Interrupted or abandoned by the engine, the result covers what was finished and says so in `partial`.

    Raises:
        HeadError: nothing was finished, or nothing was drafted at all.
    """
    load_before = load()
    with nothing_yet("warming up"):
        session.run(questions[:1], Sampling(max_tokens=WARM_UP_TOKENS), 1, lambda record: None)
        session.take_steps()
    with progress("asking", len(questions) * _answers_each(questions, sampling)) as advance:
        run = drive(session, questions, sampling, concurrency, lambda record: advance())
    if not run.records:
        if run.stopped:
            raise HeadError(f"the run ended before anything was answered: {run.stopped.rstrip('.')}")
        raise HeadError(f"every request was refused: {run.refused[0]}" if run.refused else "no answers")
    result = summarise(run, session.k, workload, len(questions))
    result.eagle.environment = environment(load_before)
    return result


def _answers_each(questions: Sequence[Question], sampling: Sampling) -> float:
    seeds = len(sampling.seeds) if sampling.temperature else 1
    return seeds * sum(q.turns for q in questions) / len(questions)


def drive(session: Session, questions: Sequence[Question], sampling: Sampling, concurrency: int, advance: Done) -> Run:
    """Ask, and keep what was finished whatever ends the run."""
    run = Run()

    def done(record: Record) -> None:
        run.records.append(record)
        advance(record)

    try:
        before, started = session.counters(), perf_counter()
        try:
            run.refused = session.run(questions, sampling, concurrency, done)
        finally:
            run.seconds = perf_counter() - started
        after = session.counters()
        run.counted = after - before if after and before else after
        run.steps = session.take_steps()
    except KeyboardInterrupt:
        run.stopped = "interrupted"
    except HeadError as error:
        run.stopped = str(error)
    run.records.sort(key=lambda r: (r.seed or 0, r.question, r.turn))
    return run


def summarise(run: Run, k: int, workload: Workload, asked: int) -> AcceptanceResult:
    """The result of a run; `environment` is still to be filled in."""
    records = run.records
    figures, source, notes = _figures(run, k)
    groups = records if source == "records" else []
    times = step_times(run.steps)
    tokens = sum(r.output_tokens for r in records)
    prompts = sum(r.prompt_tokens for r in records)
    seconds = max(run.seconds, 1e-9)
    length = figures.acceptance_length.value
    return AcceptanceResult(
        date=datetime.now().strftime("%Y%m%d-%H%M%S"),
        model_id=workload.target,
        num_prompts=asked,
        max_concurrency=workload.concurrency,
        duration=run.seconds,
        completed=len(records),
        failed=len(run.refused),
        total_input_tokens=prompts,
        total_output_tokens=tokens,
        request_throughput=len(records) / seconds,
        output_throughput=tokens / seconds,
        total_token_throughput=(tokens + prompts) / seconds,
        **cast(Any, latencies(records)),
        input_lens=[r.prompt_tokens for r in records],
        output_lens=[r.output_tokens for r in records],
        ttfts=[r.ttft for r in records],
        itls=[r.itl for r in records],
        generated_texts=[r.text for r in records],
        errors=["" for _ in records] + run.refused,
        spec_decode_acceptance_rate=None if length is None else 100 * (figures.acceptance_rate.value or 0.0),
        spec_decode_acceptance_length=length,
        spec_decode_num_drafts=figures.num_drafts,
        spec_decode_draft_tokens=figures.draft_tokens,
        spec_decode_accepted_tokens=figures.accepted_tokens,
        spec_decode_per_position_acceptance_rates=[f.value or 0.0 for f in figures.per_position],
        eagle=Eagle(
            partial=run.stopped,
            source=source,
            workload=workload,
            environment=environment(load()),
            acceptance=figures,
            by_category=by_category(groups, k),
            by_prompt_length=by_prompt_length(groups, k),
            by_output_position=by_output_position(groups, k),
            histograms=histograms(groups, k),
            step_ms=times,
            notes=notes,
            requests=records,
        ),
    )


def _figures(run: Run, k: int) -> tuple[Acceptance, Source, list[str]]:
    """Acceptance, where it is from, and what must be said about it."""
    records, notes = run.records, list[str]()
    figures, source = acceptance(records, k), cast(Source, "records")
    if run.counted is not None:
        if figures.num_drafts == 0 and run.counted.drafts:
            figures, source = from_counters(run.counted, records), cast(Source, "counters")
            notes.append(f"The server reports totals only. For intervals and groups start it with {DETAILED_FLAG}.")
        elif not _agree(figures, run.counted):
            notes.append(
                f"vLLM's own counters grew by {run.counted.drafts} drafts and {run.counted.accepted} accepted tokens "
                f"while our requests had {figures.num_drafts} and {figures.accepted_tokens}: "
                "somebody else was being served too. The figures here are of our requests alone."
            )
    if figures.num_drafts == 0 and k:
        notes.append("Nothing was drafted. Has the answer room for drafts, and does the method find any?")
    return figures, source, notes


def _agree(figures: Acceptance, counted: Counters) -> bool:
    return (figures.num_drafts, figures.draft_tokens, figures.accepted_tokens) == (
        counted.drafts,
        counted.draft_tokens,
        counted.accepted,
    )


def from_counters(counted: Counters, records: Sequence[Record]) -> Acceptance:
    """Acceptance from vLLM's totals alone: no intervals; conditional rates only if every step drafted all k."""
    k, drafts = len(counted.per_position), counted.drafts
    rates = [n / drafts for n in counted.per_position]
    full = counted.draft_tokens == k * drafts
    reached = [drafts, *counted.per_position]
    conditional = [n / m if full and m else None for n, m in zip(counted.per_position, reached, strict=False)]
    length = 1 + counted.accepted / drafts
    return Acceptance(
        questions=len({r.question for r in records}),
        requests=len(records),
        num_drafts=drafts,
        draft_tokens=counted.draft_tokens,
        accepted_tokens=counted.accepted,
        acceptance_length=Figure(value=length),
        acceptance_rate=Figure(value=counted.accepted / counted.draft_tokens),
        per_position=[Figure(value=rate) for rate in rates],
        conditional=[Figure(value=rate) for rate in conditional],
        expected_length=Figure(value=length if full else None),
        tokens_per_step=Figure(value=None),
        emitted_length=Figure(value=None),
        trimmed_tokens=None,
        trimmed_accepted_tokens=None,
    )


def step_times(steps: Sequence[Step]) -> StepTimes | None:
    """Mean milliseconds of the decode steps, by part; None where none could be seen."""
    if not steps:
        return None
    mean = {
        part: sum(getattr(s, part) for s in steps) / len(steps) for part in ("total", "draft", "verify", "scheduling")
    }
    other = mean["total"] - mean["draft"] - mean["verify"] - mean["scheduling"]
    return StepTimes(steps=len(steps), **mean, other=max(0.0, other))


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr where that is a terminal; yields what moves it by one."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
