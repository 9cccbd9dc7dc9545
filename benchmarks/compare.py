"""`bench compare`: heads and methods against plain decoding, interleaved in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import HeadError
from .acceptance import progress
from .environment import environment, load
from .interleave import Trial, interleaved, row
from .methods import PLAIN, Method
from .prompts import Question, fingerprint
from .records import Record
from .session import Sampling
from .speed_schema import Compare, Difference
from .worker import Worker, open_workers

#: Logit gaps within which greedy decoding may go either way: a few units in the last place at logits of 16 to
#: 32, since one row and several rows at once are summed in different orders.
TIE_TOLERANCE = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}


def compare(
    target: str,
    methods: Sequence[Method],
    questions: Sequence[Question],
    prompts: str,
    sampling: Sampling,
    concurrency: int,
    rounds: int,
    options: dict[str, Any],
    fresh: bool = False,
) -> Compare:
    """Measure `methods` against plain decoding, which is added.

    fresh: the engines are started anew for each round.

    Raises:
        HeadError: an engine did not start, or nothing was finished.
    """
    everyone = [Method(PLAIN, None), *methods]
    load_before = load()
    trials = {m.name: Trial(m, concurrency) for m in everyone}
    differences, about, stopped = list[Difference](), dict[str, Any](), None
    for start in range(rounds if fresh else 1):
        # The engine that is started first is a percent or two faster than the others, whatever it is.
        first = start % len(everyone)
        order = [*everyone[first:], *everyone[:first]]
        try:
            with open_workers(target, {m.name: m.speculative for m in order}, options) as workers:
                answered, stopped = run_all(workers, everyone, questions, sampling, concurrency, 1 if fresh else rounds)
                about = workers[PLAIN].describe()
                # Whoever was interrupted may be in the middle of a sentence, or dead: it is asked nothing more.
                told = _judged(answered, None if stopped else workers[PLAIN], questions, sampling, about)
            differences += told  # only now: answers that nobody has compared would count as the same
            for name, trial in answered.items():
                trials[name].add(trial, start)
        except (HeadError, KeyboardInterrupt) as error:
            if start == 0:
                raise
            stopped = str(error) or "interrupted"
        if stopped:
            break
    plain, where = trials[PLAIN], environment(load_before)
    return Compare(
        partial=stopped,
        target=target,
        prompts=prompts,
        prompts_sha256=fingerprint(list(questions)),
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        questions=len({r.question for r in plain.records}),
        rounds=rounds,
        fresh=fresh,
        engine={name: value for name, value in about.items() if name != "method"},
        environment=where,
        rows=[row(t, plain, _answers(t, differences, sampling)) for t in trials.values()],
        differences=differences,
        tie_tolerance=_tolerance(about),
        notes=busy_note(load_before, where.hardware.get("cores") or 1),
        requests={name: trial.records for name, trial in trials.items()},
    )


def _tolerance(about: dict[str, Any]) -> float:
    return TIE_TOLERANCE.get(about["dtype"], TIE_TOLERANCE["bfloat16"])


def _judged(
    answered: dict[str, Trial],
    judge: Worker | None,
    questions: Sequence[Question],
    sampling: Sampling,
    about: dict[str, Any],
) -> list[Difference]:
    """Where greedy answers leave plain decoding's."""
    if sampling.temperature != 0:
        return []
    asked, tolerance = {q.index: q for q in questions}, _tolerance(about)
    return [
        difference
        for trial in answered.values()
        for difference in find_differences(trial, answered[PLAIN], judge, asked, tolerance)
    ]


def run_all(
    workers: dict[str, Worker],
    methods: Sequence[Method],
    questions: Sequence[Question],
    sampling: Sampling,
    concurrency: int,
    rounds: int,
) -> tuple[dict[str, Trial], str | None]:
    """All trials, and why they are not complete.

    Raises:
        HeadError: not one block was finished by all.
    """
    trials: dict[str, Trial] = {}
    stopped = None
    blocks = rounds * (len(questions) // concurrency) * len(methods)
    try:
        with progress(f"{len(methods)} ways, {concurrency} at a time", blocks) as advance:
            for done in interleaved(workers, methods, questions, sampling, concurrency, rounds, advance):
                trials = done
    except KeyboardInterrupt:
        stopped = "interrupted"
    except HeadError as error:
        if not trials:
            raise
        stopped = str(error)
    if not trials:
        raise HeadError(f"the run ended before every way had answered once: {stopped}")
    return trials, stopped


def busy_note(load_before: float, cores: int) -> list[str]:
    """A warning where the machine had other work when the run began."""
    if load_before <= cores / 2:
        return []
    return [
        f"The machine was busy when this began (load {load_before:.1f} on {cores} cores). Interleaving keeps the "
        "ratios fair; the absolute speeds are lower than on an idle machine."
    ]


def find_differences(
    trial: Trial, plain: Trial, judge: Worker | None, asked: dict[int, Question], tolerance: float
) -> list[Difference]:
    """Answers that leave plain decoding's, with the logit gap there by the plain engine `judge` if given."""
    differences = []
    for ours, theirs in zip(trial.records, plain.records, strict=True):
        position = first_difference(ours.token_ids, theirs.token_ids)
        if position is None:
            continue
        said, other = _at(theirs, position), _at(ours, position)
        gap = None
        if judge is not None and said is not None and other is not None:
            context = judge.encode(asked[ours.question]) + theirs.token_ids[:position]
            likely, less = judge.logprobs(context, (said, other))
            gap = likely - less
        differences.append(
            Difference(
                name=trial.method.name,
                question_id=ours.question_id,
                position=position,
                plain_token=said,
                token=other,
                logit_gap=gap,
                tie=None if gap is None else abs(gap) <= tolerance,
            )
        )
    return differences


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first position at which two answers differ, a shorter one by ending; None if they are the same."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return None if len(one) == len(other) else min(len(one), len(other))


def _at(record: Record, position: int) -> int | None:
    return record.token_ids[position] if position < len(record.token_ids) else None


def _answers(trial: Trial, differences: list[Difference], sampling: Sampling) -> dict[str, int]:
    """How many answers are plain decoding's, part from them at a tie, and are wrong; nothing above temperature 0."""
    if sampling.temperature != 0:
        return {}
    ours = [d.tie for d in differences if d.name == trial.method.name]
    return {"identical": len(trial.records) - len(ours), "tied": ours.count(True), "wrong": ours.count(False)}
