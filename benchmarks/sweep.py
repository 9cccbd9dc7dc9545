"""`bench sweep`: every k at every batch size, a cost model fitted to them, and what to set.

Speedups here are *decode* speedups: tokens behind the first one, per second between the first and the last,
over plain decoding's. They leave the prompt out, which speculation does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import HeadError, UsageError
from .compare import busy_note, run_all
from .cost_model import PLAIN as PLAIN_SHAPE
from .cost_model import Measured, Shape, advise, chain, decode_speedup, fit
from .environment import environment, load
from .interleave import Trial, row
from .methods import PLAIN, Method, serve_command
from .prompts import Question, fingerprint
from .session import Sampling
from .speed_schema import Advice, Prediction, Row, Sweep, Synthetic
from .statistics import SCALARS, expected_length, tally
from .worker import open_workers

#: (k, batch) -> trial
Trials = dict[tuple[int, int], Trial]


def sweep(
    target: str,
    head: Method,
    questions: Sequence[Question],
    prompts: str,
    max_tokens: int,
    batches: Sequence[int],
    synthetic: Sequence[float],
    options: dict[str, Any],
    trees: Sequence[Method] = (),
) -> Sweep:
    """Measure `head` at every k up to its own, and `trees`, at every batch size, against plain decoding.

    Answers have full length (`ignore_eos`), so that every batch stays full.

    Raises:
        HeadError: an engine did not start, or too little was finished to say anything.
    """
    _check(head, synthetic)
    ways = [Method(PLAIN, None)] + [_at(head, k) for k in range(1, head.k + 1)]
    better = {length: _synthetic(head, length) for length in synthetic}
    everyone = [*ways, *better.values(), *trees]
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    load_before, stopped = load(), None
    runs: dict[int, dict[str, Trial]] = {}
    with open_workers(target, {m.name: m.speculative for m in everyone}, options) as workers:
        about = workers[PLAIN].describe()
        for batch in batches:
            try:
                runs[batch], stopped = run_all(workers, everyone, questions, sampling, batch, 1)
            except HeadError as error:  # before this batch had anything to show: those before it have
                if not runs:
                    raise
                stopped = str(error)
            if stopped:
                break
    trials = {(way.k, batch): run[way.name] for batch, run in runs.items() for way in ways}
    rows = [row(trial, trials[0, batch]) for (_, batch), trial in trials.items()]
    rates = conditional_rates(trials)
    cost = fit(step_times(trials))
    tree_rows = [row(run[tree.name], run[PLAIN]) for run in runs.values() for tree in trees]
    advice = [_measured(target, a, [*rows, *tree_rows]) for a in advise(cost, rates, sorted(runs))]
    return Sweep(
        partial=stopped,
        target=target,
        prompts=prompts,
        prompts_sha256=fingerprint(list(questions)),
        max_tokens=max_tokens,
        questions=len(questions),
        engine={name: value for name, value in about.items() if name != "method"},
        environment=(where := environment(load_before)),
        rows=rows,
        trees=tree_rows,
        conditional=rates,
        cost=cost,
        held_out=hold_out(trials),
        advice=advice,
        synthetic=[
            _judge(cost, run[m.name], run[PLAIN], length) for run in runs.values() for length, m in better.items()
        ],
        notes=busy_note(load_before, where.hardware.get("cores") or 1),
    )


def _check(head: Method, synthetic: Sequence[float]) -> None:
    """Raises UsageError where there is no k to sweep, or no head could accept what is to be imagined."""
    if head.speculative is None or head.k < 2:
        raise UsageError(f"a sweep up to k = {head.k}", "k = 2 or more was expected")
    most = [length for length in synthetic if not 1 <= length <= head.k + 1]
    if most:
        raise UsageError(
            f"--synthetic {most[0]:g}", f"An acceptance length within 1 and k + 1 = {head.k + 1} was expected"
        )


def _measured(target: str, advice: Advice, rows: Sequence[Row]) -> Advice:
    """The model's advice with what was measured: the fastest chain or tree, and its command if it is faster for sure."""
    drafting = [r for r in rows if r.concurrency == advice.concurrency and r.speculative_config and not r.impossible]
    best = max(drafting, key=lambda r: r.speedup.value or 0.0, default=None)
    if best is None:
        return advice
    faster = best.speedup.low is not None and best.speedup.low > 1
    command = serve_command(target, best.speculative_config or {}) if faster else None
    return advice.model_copy(update={"best": best.name, "measured": best.speedup, "command": command})


def _at(head: Method, k: int) -> Method:
    return Method(f"k={k}", {**(head.speculative or {}), "num_speculative_tokens": k})


def _synthetic(head: Method, length: float) -> Method:
    config = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
    return Method(f"synthetic {length:g}, k={head.k}", {**(head.speculative or {}), **config})


def shape(k: int) -> Shape:
    """What is verified at k."""
    return chain(k) if k else PLAIN_SHAPE


def step_times(trials: Trials) -> dict[tuple[Shape, int], Measured]:
    """Median milliseconds of the steps with a full batch, in which every request was drafted for.

    The median, because one interruption by another program must not look like the cost of a setting.
    """
    times = {}
    for (k, batch), trial in trials.items():
        full = [s for s in trial.steps if s.requests == batch and s.rows == batch * (k + 1)]
        if full:
            total, draft = (float(np.median([getattr(s, part) for s in full])) for part in ("total", "draft"))
            times[shape(k), batch] = Measured(total, draft)
    return times


def conditional_rates(trials: Trials) -> list[float]:
    """Conditional acceptance rates by position, from all runs that drafted it."""
    most = max(k for k, _ in trials)
    accepted, reached = np.zeros(most), np.zeros(most)
    for (k, _), trial in trials.items():
        if k:
            sums = tally(trial.records, k).sums.sum(0)
            accepted[:k] += sums[SCALARS : SCALARS + k]
            reached[:k] += sums[SCALARS + k :]
    return [float(a / r) if r else 0.0 for a, r in zip(accepted, reached, strict=True)]


def measured_speedup(trial: Trial, plain: Trial) -> float:
    """Decode speedup as the requests saw it."""

    def speed(of: Trial) -> float:
        return sum(r.output_tokens - 1 for r in of.records) / sum(r.latency - r.ttft for r in of.records)

    return speed(trial) / speed(plain)


def hold_out(trials: Trials) -> list[Prediction]:
    """Each k between the least and the most, predicted from the others alone: costs and acceptance."""
    ks = sorted({k for k, _ in trials if k})
    predictions = []
    for k in ks[:-1] if len(ks) > 2 else []:
        others = {key: trial for key, trial in trials.items() if key[0] != k}
        try:
            cost = fit(step_times(others))
        except HeadError:
            continue
        length = expected_length(conditional_rates(others), k)
        for (of, batch), trial in trials.items():
            if of == k:
                predicted = decode_speedup(cost, chain(k), batch, length)
                measured = measured_speedup(trial, trials[0, batch])
                predictions.append(
                    Prediction(
                        num_speculative_tokens=k,
                        concurrency=batch,
                        predicted=predicted,
                        measured=measured,
                        error=predicted / measured - 1,
                    )
                )
    return predictions


def _judge(cost: Any, trial: Trial, plain: Trial, length: float) -> Synthetic:
    predicted = decode_speedup(cost, chain(trial.method.k), trial.concurrency, length)
    measured = measured_speedup(trial, plain)
    return Synthetic(
        acceptance_length=length,
        num_speculative_tokens=trial.method.k,
        concurrency=trial.concurrency,
        predicted=predicted,
        measured=measured,
        error=predicted / measured - 1,
    )
