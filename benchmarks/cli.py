"""`vllm-eagle bench ...` and `vllm-eagle trace`. Every verb imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as o
from .cli_speed import compare, sweep

app = typer.Typer(help="Measure acceptance and speed in a real vLLM.", no_args_is_help=True)


@app.command()
def acceptance(
    target: Annotated[str | None, typer.Option(help="The model that decides: a folder or a hub id.")] = None,
    head: o.Head = None,
    method: o.Method = None,
    spec_config: o.Spec = None,
    url: Annotated[str | None, typer.Option(help="A running server, in place of an engine of our own.")] = None,
    model: Annotated[str | None, typer.Option(help="The server's name of the model.")] = None,
    prompts: o.Prompts = "builtin",
    limit: o.Limit = None,
    all_turns: Annotated[bool, typer.Option("--all-turns/--first-turn", help="Later turns too.")] = False,
    k: o.K = 3,
    max_tokens: o.Tokens = 128,
    temperature: o.Temperature = 0.0,
    seed: Annotated[list[int] | None, typer.Option(help="Repeat to ask everything once per seed.")] = None,
    concurrency: o.Concurrency = 1,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers of full length.")] = False,
    quick: o.Quick = False,
    engine_args: o.Engine = None,
    as_json: o.Json = False,
    output: o.Output = None,
    html: o.Html = None,
    plot: o.Plot = None,
) -> None:
    """How many drafts are accepted, with intervals; per position, category, prompt length, output position."""
    from .acceptance import measure, one_engine, workload
    from .methods import engine_options, make_method
    from .prompts import first_turns, read_prompts
    from .remote import Remote
    from .schema import AcceptanceResult
    from .session import Sampling, Session

    o.check_files(output, html, plot)
    limit, max_tokens = o.few(quick, limit, max_tokens)
    questions = read_prompts(prompts, limit)
    if not all_turns:
        questions = first_turns(questions)
    sampling = Sampling(temperature, max_tokens, tuple(seed or [0]), ignore_eos)

    def asked(session: Session, name: str, draft: str | None = None) -> AcceptanceResult:
        work = workload(session, name, draft, questions, prompts, sampling, concurrency, all_turns)
        return measure(session, questions, sampling, concurrency, work)

    if url is not None:
        if target or head or method or spec_config or engine_args:
            raise UsageError("--url with options of an engine", "The server has its own", "Leave one of them out")
        server = Remote(url, model)
        result = asked(server, server.model)
    else:
        if target is None:
            raise UsageError("no --target and no --url", "", "Say what to measure: --target TARGET --head HEAD")
        chosen = make_method(head, method, k, spec_config)
        with one_engine(target, chosen, engine_options(engine_args)) as worker:
            result = asked(worker, target, chosen.head)
    o.finish(result, result.eagle.partial, as_json, output, html, plot)


app.command()(compare)
app.command()(sweep)


@app.command()
def gate(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="What `bench acceptance --output` wrote.")],
    baseline: Annotated[Path, typer.Option(help="The stored baseline.")],
    tolerance: Annotated[float, typer.Option(help="Tolerated fall, as a fraction of the length.", min=0, max=1)] = 0.02,
    update: Annotated[bool, typer.Option("--update", help="Store RESULT as the baseline instead.")] = False,
    as_json: o.Json = False,
) -> None:
    """Exit 1 when acceptance has fallen below a stored baseline, beyond noise. Made for CI."""
    from .gate import Baseline, judge, write_baseline
    from .schema import AcceptanceResult, read_result

    measured = read_result(result, AcceptanceResult)
    if update:
        o.check_files(baseline, None, None)
        stored = write_baseline(measured, baseline)
        print(
            stored.model_dump_json()
            if as_json
            else f"stored acceptance length {stored.acceptance_length:.3f} in {baseline}"
        )
        return
    if not baseline.is_file():
        raise UsageError(f"there is no baseline {baseline}", "", "Store one: the same command with --update")
    verdict = judge(measured, read_result(baseline, Baseline), tolerance)
    print(verdict.model_dump_json() if as_json else f"{'passed' if verdict.passed else 'FAILED'}: {verdict.reason}")
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def live(
    url: Annotated[str, typer.Argument(metavar="URL", help="A running server, such as http://localhost:8000.")],
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval.")] = False,
    as_json: o.Json = False,
) -> None:
    """Follow a running server: acceptance length, positions, accepted and drafted tokens per second."""
    import json

    from . import live as server
    from .report.terminal import terminal

    if as_json and not once:
        raise UsageError("--json without --once", "", "Add --once")
    if as_json:
        print(json.dumps(server.once(url, interval)))
    elif once:
        first = server.sample(url)
        server.time.sleep(interval)
        terminal().print(server.view(url, server.deque([first, server.sample(url)])))
    else:
        server.follow(url, interval, terminal())


def trace(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    target: o.Target,
    head: o.Head = None,
    method: o.Method = None,
    spec_config: o.Spec = None,
    k: o.K = 3,
    max_tokens: o.Tokens = 64,
    temperature: o.Temperature = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    engine_args: o.Engine = None,
    as_json: o.Json = False,
    output: o.Output = None,
    html: o.Html = None,
    svg: Annotated[Path | None, typer.Option(help="Write the coloured answer here, as SVG.")] = None,
    plot: o.Plot = None,
    step: Annotated[
        list[int] | None, typer.Option(help="A step that --plot draws; repeat. Four of the answer if left out.", min=0)
    ] = None,
) -> None:
    """One answer, every token coloured by how it came, with what was rejected and both models' probabilities; of
    draft trees each step's tree."""
    import io
    import tempfile

    from rich.console import Console

    from .methods import engine_options, make_method
    from .report import write_trace
    from .report.terminal import terminal
    from .report.trace_page import write_picture
    from .session import Sampling
    from .trace import trace as run

    o.check_files(output, html, plot)
    o.check_files(svg, None, None)
    if step and plot is None:
        raise UsageError("--step without --plot", "It says which steps the picture has", "Add --plot F")
    chosen = make_method(head, method, k, spec_config)
    result = run(target, chosen, prompt, Sampling(temperature, max_tokens), engine_options(engine_args), not raw)
    o.deliver(result, as_json, output)
    write_trace(result, html, plot, step)
    if svg is not None or not as_json:
        with tempfile.TemporaryDirectory() as folder:
            console = Console(file=io.StringIO()) if as_json else terminal()
            write_picture(result, console, svg or Path(folder) / "trace.svg")
