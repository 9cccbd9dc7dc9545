"""`vllm-eagle`: one thin verb for each job; every verb imports what it needs when it runs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import __version__
from .errors import HeadError, UsageError
from .training.cli import train_app

app = typer.Typer(
    name="vllm-eagle",
    help="Serve any EAGLE draft head in vLLM: inspect it, convert it, see it work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")

HeadArgument = Annotated[Path, typer.Argument(metavar="HEAD", help="Folder or file of the trained head.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
ProducerOption = Annotated[str | None, typer.Option(help="Who trained it, where files cannot tell.")]


def main() -> None:
    """Entry point: a `HeadError` becomes one line on stderr and exit code 1, wrong usage exit code 2."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        app()
    except HeadError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _version(asked: bool) -> None:
    if asked:
        from .compat import vllm_distribution

        found = vllm_distribution()
        print(f"vllm-eagle-plugin {__version__}, {' '.join(found) if found else 'no vLLM'}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Options before the verb."""


@app.command()
def inspect(head: HeadArgument, producer: ProducerOption = None, as_json: JsonOption = False) -> None:
    """Say what a head is: its producer with the evidence, its tensors, its config."""
    from .conversion import inspect_head

    found = inspect_head(head, producer).as_json()
    if as_json:
        print(json.dumps(found))
        return
    console = Console(markup=False)  # names come from files
    console.print(f"{found['producer']}: {found['summary']}")
    console.print(f"because of {'; '.join(found['evidence'])}. {found['parameters'] / 1e6:.1f} M parameters.")
    table = Table("tensor", "shape", "dtype")
    for name, tensor in found["tensors"].items():
        table.add_row(name, " x ".join(map(str, tensor["shape"])), tensor["dtype"])
    console.print(table)
    if found["config"] is None:
        console.print("There is no config.json beside it.")


@app.command()
def convert(
    head: HeadArgument,
    target: Annotated[str, typer.Option(help="The model it drafts for: a folder or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    producer: ProducerOption = None,
    token_pairing: Annotated[
        str | None, typer.Option(help="Trained on the token behind the hidden state (next) or at it (same).")
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="RoPE base it was trained with.")] = None,
    embedding: Annotated[Path | None, typer.Option(help="File with the head's own embedding table.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as they are.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a head converted earlier.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a head as vLLM serves it, and print the command that does."""
    from .conversion import convert as run
    from .conversion.options import Options

    done = run(
        head,
        target,
        output,
        Options(
            producer=producer, token_pairing=token_pairing, rope_theta=rope_theta, embedding=embedding, dtype=dtype
        ),
        force=force,
        dry_run=dry_run,
    )
    result = done.as_json()
    if as_json:
        print(json.dumps(result))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)  # notes have brackets, names come from files
    console.print(f"{result['producer']} ({'; '.join(result['evidence'])})")
    for note in result["notes"]:
        console.print(f"  - {note}")
    for name, why in result["dropped"].items():
        console.print(f"  - {name} left out: {why}")
    kind = "needs this plugin" if result["needs_plugin"] else "serves without this plugin too"
    console.print(
        f"written as {result['architecture']} ({result['why']}; {kind})"
        if done.written
        else f"would be written as {result['architecture']} ({result['why']}; {kind})"
    )
    console.print("\nServe it:" if done.written else "\nIt would be served by:")
    print(result["serve"])


@app.command()
def demo(
    prepare: Annotated[
        Path | None, typer.Option(help="Only build the demo target, into DIR/target.", metavar="DIR")
    ] = None,
    head: Annotated[Path | None, typer.Option(help="Another trained head for the demo target.")] = None,
    work: Annotated[Path, typer.Option(help="Where the target and results go.")] = Path("artifacts/demo"),
    k: Annotated[int, typer.Option("-k", help="num_speculative_tokens.", min=1)] = 3,
) -> None:
    """Build a small real model, serve it plain and with a draft head, and compare."""
    from .demo import run_demo
    from .demo.target import build_target

    if prepare is not None:
        print(build_target(prepare / "target"))
        return
    run_demo(work, head, k)


if __name__ == "__main__":
    main()
