"""What drafting as a tree costs a step, where the tree is a chain: the same drafts as a stock chain's, verified alike.

Two engines answer the same texts in turns, a stock chain of k tokens and a static tree of k levels with one branch
each, at several lengths of context. Only steps that verify all k drafts count. `step` is the whole of
`LLMEngine.step`, `verify` the target's pass and sampling in it; both are means of the texts' medians.

`python -m experiments.tree_overhead --target TARGET --head HEAD [-k 4] [--json FILE]`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from vllm_eagle_plugin.benchmarks.acceptance import progress
from vllm_eagle_plugin.benchmarks.environment import load
from vllm_eagle_plugin.benchmarks.interleave import interleaved
from vllm_eagle_plugin.benchmarks.methods import Method, check_head
from vllm_eagle_plugin.benchmarks.prompts import BUILTIN, Question, read_prompts
from vllm_eagle_plugin.benchmarks.schema import Figure
from vllm_eagle_plugin.benchmarks.session import Sampling, Step
from vllm_eagle_plugin.benchmarks.statistics import ratio_interval
from vllm_eagle_plugin.benchmarks.worker import open_workers

from vllm_eagle_plugin.command import run_function
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.tree import SECTION

from . import options

CONTEXTS = (100, 500, 1000, 2000)
STOCK, TREE = "stock chain", "tree of one branch"
PARTS = ("step", "verify")


def texts(words: Sequence[int], length: int, count: int) -> list[Question]:
    """`count` texts of exactly `length` tokens, out of `words`, again from their start where they do not suffice."""
    room = max(1, (len(words) - length) // count)
    words = [*words] * (1 + (length + count * room) // len(words))
    return [Question(i, str(i), token_ids=tuple(words[i * room : i * room + length])) for i in range(count)]


def medians(steps: Sequence[Step], k: int) -> dict[str, float]:
    """Milliseconds by part, of the steps that verified k drafts.

    Raises:
        HeadError: there are none.
    """
    full = [step for step in steps if step.drafted and step.rows == 1 + k]
    if not full:
        raise HeadError(f"no step verified {k} drafts", "Steps can be timed where the engine runs in this process")
    return {"step": median(s.total for s in full), "verify": median(s.verify for s in full)}


def measured(workers: Any, methods: Sequence[Method], questions: Sequence[Question], tokens: int) -> Iterator[Any]:
    """For each text, milliseconds by method and part."""
    k, seen = methods[0].k, dict.fromkeys((m.name for m in methods), 0)
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    for trials in interleaved(workers, methods, questions, sampling, 1):
        yield {name: medians(trial.steps[seen[name] :], k) for name, trial in trials.items()}
        seen = {name: len(trial.steps) for name, trial in trials.items()}


def summary(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means by part, and the tree's against the chain's with its 95% interval over texts."""
    made: dict[str, Any] = {"texts": len(found)}
    for part in PARTS:
        tree, stock = [one[TREE][part] for one in found], [one[STOCK][part] for one in found]
        bounds = ratio_interval(tree, stock) or (None, None)
        ratio = Figure(value=sum(tree) / sum(stock), low=bounds[0], high=bounds[1])
        made[part] = {"stock_ms": fmean(stock), "tree_ms": fmean(tree), "ratio": ratio.model_dump()}
    return made


def main(
    target: options.Target,
    head: options.Head,
    k: Annotated[int, typer.Option("-k", min=1, help="Drafts of a step.")] = 4,
    context: Annotated[list[int] | None, typer.Option(help="Tokens of context; 100, 500, 1000 and 2000.")] = None,
    count: Annotated[int, typer.Option("--texts", min=1, help="Texts of each length.")] = 6,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 48,
    dtype: Annotated[str, typer.Option(help="Of weights and states.")] = "bfloat16",
    output: options.Output = None,
) -> None:
    """Print the table."""
    check_head(head)
    contexts, before = context or list(CONTEXTS), load()
    drafting = {"model": head, "num_speculative_tokens": k}
    tree = {SECTION: {"tree": {"kind": "static", "branches": [1] * k}}}
    methods = [Method(STOCK, drafting), Method(TREE, drafting | tree)]
    length = max(contexts) + max_tokens + k + 1
    settings = {"dtype": dtype, "enforce_eager": True, "max_model_len": length, "max_num_batched_tokens": length}
    results: dict[str, Any] = {}
    with (
        open_workers(target, {m.name: m.speculative for m in methods}, settings) as workers,
        progress("chains and trees", len(contexts) * count) as advance,
    ):
        # Whatever is wrong with the target, an engine has said it before its tokenizer is asked.
        words = [token for question in read_prompts(BUILTIN) for token in workers[STOCK].encode(question)]
        for tokens in contexts:
            found = []
            for one in measured(workers, methods, texts(words, tokens, count), max_tokens):
                found.append(one)
                advance()
            results[str(tokens)] = summary(found)
    columns = ["tokens of context"]
    columns += [f"{part}: {what}" for part in PARTS for what in ("chain, ms", "tree, ms", "ratio (95%)")]
    table = Table(*columns)
    for context_of, one in results.items():
        table.add_row(context_of, *(cell for part in PARTS for cell in cells(one[part])))
    Console(width=120).print(table)
    options.write(output, "tree_overhead", before, k=k, dtype=dtype, max_tokens=max_tokens, contexts=results)


def cells(part: dict[str, Any]) -> list[str]:
    """A part's milliseconds and their ratio, as text."""
    ratio = part["ratio"]
    interval = "" if ratio["low"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    return [f"{part['stock_ms']:.1f}", f"{part['tree_ms']:.1f}", f"{ratio['value']:.2f}{interval}"]


if __name__ == "__main__":
    run_function(main)
