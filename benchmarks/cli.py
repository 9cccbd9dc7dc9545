"""`vllm-eagle bench ...` and `vllm-eagle trace`. Every verb imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

app = typer.Typer(help="Measure acceptance and speed in a real vLLM.", no_args_is_help=True)

TargetOption = Annotated[str, typer.Option(help="The model that decides: a folder or a hub id.")]
PromptsOption = Annotated[
    str, typer.Option(help="JSONL, ShareGPT JSON or text file, data set on the hub, or `builtin`.")
]
LimitOption = Annotated[int | None, typer.Option(help="Only the first so many questions.", min=1)]
TokensOption = Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.", min=0)]
ConcurrencyOption = Annotated[int, typer.Option(help="Requests at a time.", min=1)]
EngineOption = Annotated[str | None, typer.Option("--engine-args", help="vLLM engine arguments as JSON.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON here too.")]
HtmlOption = Annotated[Path | None, typer.Option(help="Write one self-contained page here.")]
PlotOption = Annotated[Path | None, typer.Option(help="Write a picture here: .png, .svg or .pdf.")]
HeadOption = Annotated[str | None, typer.Option(help="A converted head, or another draft model.")]
MethodOption = Annotated[str | None, typer.Option(help="ngram, draft_model, medusa, suffix, ...: as vLLM names it.")]
SpecOption = Annotated[str | None, typer.Option(help="More of vLLM's speculative config, as JSON.")]
KOption = Annotated[int, typer.Option("-k", "--num-speculative-tokens", help="Drafts per step.", min=1)]


@app.command()
def acceptance(
    target: Annotated[str | None, typer.Option(help="The model that decides: a folder or a hub id.")] = None,
    head: HeadOption = None,
    method: MethodOption = None,
    spec_config: SpecOption = None,
    url: Annotated[str | None, typer.Option(help="A running server, in place of an engine of our own.")] = None,
    model: Annotated[str | None, typer.Option(help="The server's name of the model.")] = None,
    prompts: PromptsOption = "builtin",
    limit: LimitOption = None,
    all_turns: Annotated[bool, typer.Option("--all-turns/--first-turn", help="Later turns too.")] = False,
    k: KOption = 3,
    max_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[list[int] | None, typer.Option(help="Repeat to ask everything once per seed.")] = None,
    concurrency: ConcurrencyOption = 1,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers of full length.")] = False,
    engine_args: EngineOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    html: HtmlOption = None,
    plot: PlotOption = None,
) -> None:
    """How many drafts are accepted, with intervals; per position, category, prompt length, output position."""
    from .acceptance import measure
    from .methods import engine_options, head_sha256, make_method
    from .prompts import fingerprint, first_turns, read_prompts
    from .remote import Remote
    from .report import write_acceptance
    from .report.terminal import show_acceptance
    from .schema import Workload
    from .session import Sampling
    from .worker import open_workers

    _check_files(output, html, plot)
    questions = read_prompts(prompts, limit)
    if not all_turns:
        questions = first_turns(questions)
    sampling = Sampling(temperature, max_tokens, tuple(seed or [0]), ignore_eos)

    def workload(session: Any, name: str, draft: str | None) -> Workload:
        settings = session.describe()
        return Workload(
            target=name,
            method=settings.pop("method"),
            head=draft,
            head_sha256=head_sha256(draft),
            num_speculative_tokens=session.k,
            prompts=prompts,
            prompts_sha256=fingerprint(questions),
            temperature=temperature,
            max_tokens=max_tokens,
            concurrency=concurrency,
            all_turns=all_turns,
            seeds=list(sampling.seeds),
            engine=settings,
        )

    if url is not None:
        if target or head or method or spec_config or engine_args:
            raise UsageError("--url with options of an engine", "The server has its own", "Leave one of them out")
        server = Remote(url, model)
        result = measure(server, questions, sampling, concurrency, workload(server, server.model, None))
    else:
        if target is None:
            raise UsageError("no --target and no --url", "", "Say what to measure: --target TARGET --head HEAD")
        chosen = make_method(head, method, k, spec_config)
        with open_workers(target, {chosen.name: chosen.speculative}, engine_options(engine_args)) as workers:
            worker = workers[chosen.name]
            about = workload(worker, target, chosen.head)
            result = measure(worker, questions, sampling, concurrency, about)
    _deliver(result, as_json, output)
    if not as_json:
        show_acceptance(_console(), result)
    write_acceptance(result, html, plot)
    if result.eagle.partial:
        raise HeadError(
            f"the run ended early: {result.eagle.partial.rstrip('.')}",
            f"{result.completed} answers are reported, marked as partial",
        )


@app.command()
def compare(
    target: TargetOption,
    head: Annotated[list[str] | None, typer.Option(help="A converted head; repeat for several.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="ngram, suffix, ...; repeat for several.")] = None,
    spec_config: Annotated[
        list[str] | None, typer.Option(help="A whole speculative config as JSON; repeat for several.")
    ] = None,
    prompts: PromptsOption = "builtin",
    limit: LimitOption = None,
    k: KOption = 3,
    max_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.0,
    concurrency: ConcurrencyOption = 1,
    rounds: Annotated[int, typer.Option(help="How often everything is asked.", min=1)] = 1,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Answers of full length.")] = False,
    engine_args: EngineOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    html: HtmlOption = None,
    plot: PlotOption = None,
) -> None:
    """Heads and methods against plain decoding, on the same questions, interleaved in one run."""
    from .compare import compare as run
    from .methods import engine_options, make_methods
    from .prompts import first_turns, read_prompts
    from .report import write_compare
    from .report.speed_tables import show_compare
    from .session import Sampling

    _check_files(output, html, plot)
    methods = make_methods(head, method, spec_config, k)
    questions = first_turns(read_prompts(prompts, limit))
    sampling = Sampling(temperature, max_tokens, ignore_eos=ignore_eos)
    options = engine_options(engine_args)
    result = run(target, methods, questions, prompts, sampling, concurrency, rounds, options)
    _deliver(result, as_json, output)
    if not as_json:
        show_compare(_console(), result)
    write_compare(result, html, plot)
    if result.partial:
        raise HeadError(f"the run ended early: {result.partial.rstrip('.')}", "What was finished is marked as partial")


@app.command()
def sweep(
    target: TargetOption,
    head: HeadOption = None,
    method: MethodOption = None,
    spec_config: SpecOption = None,
    prompts: PromptsOption = "builtin",
    limit: LimitOption = 16,
    k: Annotated[int, typer.Option("-k", "--num-speculative-tokens", help="Drafts per step, at most.", min=2)] = 4,
    batch: Annotated[list[int] | None, typer.Option(help="Requests at a time; repeat for several.", min=1)] = None,
    synthetic: Annotated[
        list[float] | None, typer.Option(help="Acceptance length of a head to imagine; repeat for several.")
    ] = None,
    max_tokens: TokensOption = 64,
    engine_args: EngineOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    html: HtmlOption = None,
    plot: PlotOption = None,
) -> None:
    """Every k at every batch size, with a cost model that says which k to use and what a better head would buy."""
    from .methods import engine_options, make_method
    from .prompts import first_turns, read_prompts
    from .report import write_sweep
    from .report.sweep_tables import show_sweep
    from .sweep import sweep as run

    _check_files(output, html, plot)
    chosen = make_method(head, method, k, spec_config)
    questions = first_turns(read_prompts(prompts, limit))
    sizes = sorted(set(batch or [1]))
    if sizes[-1] > len(questions):
        raise UsageError(f"--batch {sizes[-1]} with {len(questions)} questions", "At least as many were expected")
    result = run(target, chosen, questions, prompts, max_tokens, sizes, synthetic or [], engine_options(engine_args))
    _deliver(result, as_json, output)
    if not as_json:
        show_sweep(_console(), result)
    write_sweep(result, html, plot)
    if result.partial:
        raise HeadError(f"the run ended early: {result.partial.rstrip('.')}", "What was finished is marked as partial")


@app.command()
def gate(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="What `bench acceptance --output` wrote.")],
    baseline: Annotated[Path, typer.Option(help="The stored baseline.")],
    tolerance: Annotated[float, typer.Option(help="Tolerated fall, as a fraction of the length.", min=0, max=1)] = 0.02,
    update: Annotated[bool, typer.Option("--update", help="Store RESULT as the baseline instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Exit 1 when acceptance has fallen below a stored baseline, beyond noise. Made for CI."""
    from .gate import Baseline, judge, write_baseline
    from .schema import AcceptanceResult, read_result

    measured = read_result(result, AcceptanceResult)
    if update:
        _check_files(baseline, None, None)
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
    as_json: JsonOption = False,
) -> None:
    """Follow a running server: acceptance length, positions, accepted and drafted tokens per second."""
    import json

    from . import live as server

    if as_json and not once:
        raise UsageError("--json without --once", "", "Add --once")
    if as_json:
        print(json.dumps(server.once(url, interval)))
    elif once:
        first = server.sample(url)
        server.time.sleep(interval)
        _console().print(server.view(url, server.deque([first, server.sample(url)])))
    else:
        server.follow(url, interval, _console())


def trace(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    target: TargetOption,
    head: HeadOption = None,
    method: MethodOption = None,
    spec_config: SpecOption = None,
    k: KOption = 3,
    max_tokens: TokensOption = 64,
    temperature: TemperatureOption = 0.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    engine_args: EngineOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    html: HtmlOption = None,
    svg: Annotated[Path | None, typer.Option(help="Write the picture here.")] = None,
) -> None:
    """One answer, every token coloured by how it came, with what was rejected and both models' probabilities."""
    import io
    import tempfile

    from rich.console import Console

    from .methods import engine_options, make_method, refuse_trees
    from .session import Sampling
    from .trace import trace as run
    from .trace import trace_page, write_picture

    _check_files(output, html, None)
    _check_files(svg, None, None)
    chosen = make_method(head, method, k, spec_config)
    refuse_trees(chosen)
    result = run(target, chosen, prompt, Sampling(temperature, max_tokens), engine_options(engine_args), not raw)
    _deliver(result, as_json, output)
    if html is not None:
        html.write_text(trace_page(result))
    if svg is not None or not as_json:
        with tempfile.TemporaryDirectory() as folder:
            console = Console(file=io.StringIO()) if as_json else _console()
            write_picture(result, console, svg or Path(folder) / "trace.svg")


def _check_files(output: Path | None, html: Path | None, plot: Path | None) -> None:
    from .report.plots import check_format

    if plot is not None:
        check_format(plot)
    for file in (output, html, plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file.parent} is not a folder", "", "Make it first")


def _deliver(result: BaseModel, as_json: bool, output: Path | None) -> None:
    text = result.model_dump_json()
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        print(text)


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)
