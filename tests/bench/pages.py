"""One page of every kind, made from invented records."""

from __future__ import annotations

from functools import cache

import numpy as np
from vllm_eagle_plugin.benchmarks.acceptance import Run, summarise
from vllm_eagle_plugin.benchmarks.cost_model import advise, fit
from vllm_eagle_plugin.benchmarks.environment import environment
from vllm_eagle_plugin.benchmarks.interleave import Block, Trial, row
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.report import report_of
from vllm_eagle_plugin.benchmarks.report.page import render
from vllm_eagle_plugin.benchmarks.report.trace_page import trace_report
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult, Workload
from vllm_eagle_plugin.benchmarks.session import Step
from vllm_eagle_plugin.benchmarks.speed_schema import Compare, Difference, Sweep, Synthetic
from vllm_eagle_plugin.benchmarks.step_watch import TraceStep
from vllm_eagle_plugin.benchmarks.sweep import _measured, conditional_rates, hold_out, step_times
from vllm_eagle_plugin.benchmarks.trace import Trace, explain

from .synthetic import geometric

CATEGORIES = ("writing", "mathematics", "a category with a rather long name, as people give them")


def acceptance_result(seed: int = 0, questions: int = 30) -> AcceptanceResult:
    records = geometric(np.random.default_rng(seed), questions, steps=40)
    records = [
        r.model_copy(update={"category": CATEGORIES[i % 3], "prompt_tokens": 20 * (i % 5 + 1), "trimmed": i % 3})
        for i, r in enumerate(records)
    ]
    steps = [Step(1, 4, True, 20.0, 4.0, 15.0, 0.3)] * 10
    workload = Workload(
        target="a/target", method="eagle3", head="a/head", num_speculative_tokens=3, prompts="builtin",
        prompts_sha256="0" * 64, temperature=0.0, max_tokens=128, concurrency=1, all_turns=False, seeds=[0],
    )  # fmt: skip
    return summarise(Run(records=records, steps=steps, seconds=60.0), 3, workload, questions)


def timed(name: str, k: int, batch: int, step_seconds: float, questions: int = 12) -> Trial:
    """A trial in which each step takes so long."""
    records = [
        r.model_copy(update={"latency": 0.1 + step_seconds * (len(r.accepted) if k else 90), "output_tokens": 91})
        for r in geometric(np.random.default_rng(3), questions, k or 1)
    ]
    if not k:
        records = [r.model_copy(update={"accepted": [], "drafted": [], "plain_steps": 90}) for r in records]
    draft = 4.0 * k
    steps = [Step(batch, batch * (k + 1), k > 0, 1e3 * step_seconds, draft, 1e3 * step_seconds - draft - 1, 0.5)] * 5
    config = {"model": "head", "num_speculative_tokens": k} if k else None
    return Trial(Method(name, config), batch, [Block([r]) for r in records], steps)


def compare_result() -> Compare:
    plain = timed("plain", 0, 1, 0.03)
    rows = [
        row(trial, plain, answers)
        for trial, answers in (
            (plain, {"identical": 12}),
            (timed("a head with a long name, k=3", 3, 1, 0.04), {"identical": 9, "tied": 3}),
            (timed("too fast, k=3", 3, 1, 0.01), {"identical": 10, "tied": 1, "wrong": 1}),
        )
    ]
    difference = Difference(name="a head", question_id="7", position=3, plain_token=1, token=2, logit_gap=0.2, tie=True)
    return Compare(
        target="a/target", prompts="builtin", prompts_sha256="", temperature=0.0, max_tokens=91, questions=12, rounds=1,
        engine={"dtype": "bfloat16"}, environment=environment(0.0), rows=rows, differences=[difference],
        tie_tolerance=0.25, notes=["a note"],
    )  # fmt: skip


def sweep_result() -> Sweep:
    runs = {
        (k, b): timed(f"k={k}" if k else "plain", k, b, 0.03 + 0.004 * k + 0.001 * b * (k + 1))
        for b in (1, 8)
        for k in range(5)
    }
    trees = [timed(f"tree {name}", 3, b, 0.05) for b in (1, 8) for name in ("4,2,1, at most 20 nodes", "auto/16")]
    rates, cost = conditional_rates(runs), fit(step_times(runs))
    better = Synthetic(
        acceptance_length=3, num_speculative_tokens=4, concurrency=1, predicted=1.9, measured=2.0, error=-0.05
    )
    rows, tree_rows = (
        [row(t, runs[0, b]) for (_, b), t in runs.items()],
        [row(t, runs[0, t.concurrency]) for t in trees],
    )
    return Sweep(
        target="a/target", prompts="builtin", prompts_sha256="", max_tokens=91, questions=12, engine={},
        environment=environment(0.0), rows=rows, conditional=rates, trees=tree_rows,
        cost=cost, held_out=hold_out(runs), advice=[_measured("a/target", a, rows + tree_rows) for a in advise(cost, rates, [1, 8])],
        synthetic=[better],
    )  # fmt: skip


def trace_result() -> Trace:
    words = dict(enumerate(["The", " sky", " is", " blue", ",", " because", "\n", " <b>", " air", " scatters"]))
    steps = [
        TraceStep([], [], [], [0], 0.9),
        TraceStep([1, 2, 4], [0.5, 0.6, 0.4], [0.8, 0.9, 0.1], [1, 2, 3], 0.7),
        TraceStep([4, 5], [0.5, 0.9], [0.9, 0.9], [4, 5, 6], 0.3),
        TraceStep([7, 8], [], [0.0, 0.4], [9], 0.6),
    ]
    return Trace(
        target="a/target", speculative_config={"model": "head"}, prompt="Why is the sky blue?", answer="",
        acceptance_length=2.0, steps=[explain(s, words.__getitem__) for s in steps], environment=environment(0.0),
    )  # fmt: skip


def tree_trace_result() -> Trace:
    """A step in which the path leaves the chain, one in which it ends at the root, one without drafts, and one that
    the answer's end cut short."""
    words = dict(
        enumerate(["The", " sky", " is", " blue", " an antidisestablishmentarian", "\n", " <b>", "  ", " air"])
    )
    steps = [
        TraceStep([], [], [], [0], 0.9),
        TraceStep([8, 1, 2, 4, 6, 7], [0.6, 0.3, 0.8, 0.15, 0.5, 0.3], [0.1, 0.7, 0.9, 0.0004, 0.2, 0.05], [1, 2, 3],
                  0.45, parents=[0, 0, 2, 2, 1, 3]),
        TraceStep([4, 8], [], [0.3, 0.2], [5], 0.4, parents=[0, 0]),
        TraceStep([], [], [], [6], 0.2, parents=[]),
        TraceStep([7, 8, 2, 3, 1], [0.5, 0.4, 0.5, 0.5, 0.5], [0.6, 0.1, 0.2, 0.3, 0.1], [7], None,
                  parents=[0, 0, 1, 3, 2]),
    ]  # fmt: skip
    return Trace(
        target="a/target", speculative_config={"model": "head", "eagle": {"tree": "auto"}}, prompt="Why is the sky?",
        answer="", acceptance_length=2.0, steps=[explain(s, words.__getitem__) for s in steps],
        environment=environment(0.0),
    )  # fmt: skip


@cache
def pages() -> dict[str, str]:
    """HTML by name."""
    return {
        "acceptance": render(report_of(acceptance_result())),
        "compare": render(report_of(compare_result())),
        "sweep": render(report_of(sweep_result())),
        "trace": render(trace_report(trace_result())),
        "tree trace": render(trace_report(tree_trace_result())),
    }
