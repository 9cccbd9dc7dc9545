"""`vllm-eagle`: one thin verb for each job; every verb imports what it needs when it runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .benchmarks.cli import app as bench_app
from .benchmarks.cli import trace
from .cli_serve import push, serve
from .command import run_command
from .conversion.cli import convert, inspect
from .conversion.cli_doctor import doctor, verify
from .training.cli import train_app

app = typer.Typer(
    name="vllm-eagle",
    help="Serve any EAGLE draft head in vLLM: inspect it, convert it, see it work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")
app.command()(trace)

app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command()(push)
app.command()(inspect)
app.command()(convert)
app.command()(verify)
app.command()(doctor)


def main() -> None:
    """Entry point: a `HeadError` becomes one line on stderr and exit code 1, wrong usage exit code 2."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    run_command(app)


def _version(asked: bool) -> None:
    if asked:
        from .compat.versions import vllm_distribution

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
