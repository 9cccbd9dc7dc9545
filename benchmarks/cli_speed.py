"""`vllm-eagle bench compare` and `bench sweep`: what is measured on several engines at once."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from . import options as o


def compare(
    target: o.Target,
    head: Annotated[list[str] | None, typer.Option(help="A converted head; repeat for several.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="ngram, suffix, ...; repeat for several.")] = None,
    spec_config: Annotated[
        list[str] | None, typer.Option(help="A whole speculative config as JSON; repeat for several.")
    ] = None,
    prompts: o.Prompts = "builtin",
    limit: o.Limit = None,
    k: o.K = 3,
    max_tokens: o.Tokens = 128,
    temperature: o.Temperature = 0.0,
    concurrency: o.Concurrency = 1,
    rounds: Annotated[int, typer.Option(help="How often everything is asked.", min=1)] = 1,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start the engines anew for each round: each is as fast as it happens to be."),
    ] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers of full length.")] = False,
    quick: o.Quick = False,
    engine_args: o.Engine = None,
    as_json: o.Json = False,
    output: o.Output = None,
    html: o.Html = None,
    plot: o.Plot = None,
) -> None:
    """Heads and methods against plain decoding, on the same questions, interleaved in one run."""
    from .compare import compare as run
    from .methods import engine_options, make_methods
    from .prompts import first_turns, read_prompts
    from .session import Sampling

    o.check_files(output, html, plot)
    limit, max_tokens = o.few(quick, limit, max_tokens)
    methods = make_methods(head, method, spec_config, k)
    questions = first_turns(read_prompts(prompts, limit))
    sampling = Sampling(temperature, max_tokens, ignore_eos=ignore_eos)
    options = engine_options(engine_args)
    result = run(target, methods, questions, prompts, sampling, concurrency, rounds, options, fresh)
    o.finish(result, result.partial, as_json, output, html, plot)


def sweep(
    target: o.Target,
    head: o.Head = None,
    method: o.Method = None,
    spec_config: o.Spec = None,
    prompts: o.Prompts = "builtin",
    limit: o.Limit = 16,
    k: Annotated[int, typer.Option("-k", "--num-speculative-tokens", help="Drafts per step, at most.", min=2)] = 4,
    batch: Annotated[list[int] | None, typer.Option(help="Requests at a time; repeat for several.", min=1)] = None,
    synthetic: Annotated[
        list[float] | None, typer.Option(help="Acceptance length of a head to imagine; repeat for several.")
    ] = None,
    tree: Annotated[
        list[str] | None,
        typer.Option(help="Trees too: 4,2,1 (continuations by level), 4x5 (beams x levels), auto; /16: 16 nodes."),
    ] = None,
    max_tokens: o.Tokens = 64,
    quick: o.Quick = False,
    engine_args: o.Engine = None,
    as_json: o.Json = False,
    output: o.Output = None,
    html: o.Html = None,
    plot: o.Plot = None,
) -> None:
    """Every k at every batch size, with a cost model that says which k to use and what a better head would buy."""
    from .methods import engine_options, make_method
    from .prompts import first_turns, read_prompts
    from .sweep import sweep as run
    from .tree_shapes import tree_method

    o.check_files(output, html, plot)
    limit, max_tokens = o.few(quick, limit, max_tokens)
    chosen = make_method(head, method, k, spec_config)
    trees = [tree_method(chosen, shape) for shape in dict.fromkeys(tree or ())]
    questions = first_turns(read_prompts(prompts, limit))
    sizes = sorted(set(batch or [1]))
    if sizes[-1] > len(questions):
        raise UsageError(f"--batch {sizes[-1]} with {len(questions)} questions", "At least as many were expected")
    options = engine_options(engine_args)
    result = run(target, chosen, questions, prompts, max_tokens, sizes, synthetic or [], options, trees)
    o.finish(result, result.partial, as_json, output, html, plot)
