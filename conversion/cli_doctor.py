"""The verbs that measure heads: `doctor` and `verify`. Imports nothing heavy until one runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .cli_options import AsJson, Config, Head, Revision, TargetOption, with_reading_options

Prompts = Annotated[
    Path | None, typer.Option(help="File of prompts (JSON lines or text); default: the target writes its own.")
]


@with_reading_options
def doctor(
    head: Head,
    target: TargetOption,
    options: Any,
    also_target: Annotated[
        list[str] | None, typer.Option(help="Another target that it may be a head for. Repeatable.")
    ] = None,
    prompts: Prompts = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the table too: a .png or .svg.")] = None,
    config: Config = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say why a head is accepted less than it should be, and how to convert it right. Exit code 1 if not sound."""
    from .doctor import diagnose
    from .doctor.report import check_plot, draw, show

    check_plot(plot)
    progress = Console(stderr=True)
    with progress.status("reading the head") as status:
        found = diagnose(
            head, target, options, prompts, also_target or (), config, revision, tell=lambda t: status.update(t)
        )
    if plot is not None:
        draw(found, plot)
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        show(found, Console(soft_wrap=True, highlight=False, markup=False))
    if not found.sound:
        raise typer.Exit(1)


@with_reading_options
def verify(
    head: Head,
    target: TargetOption,
    converted: Annotated[Path, typer.Option(help="The folder that `convert` wrote.")],
    options: Any,
    prompts: Prompts = None,
    plain: Annotated[bool, typer.Option("--plain", help="In torch alone, also where vLLM is installed.")] = False,
    against: Annotated[
        str | None, typer.Option(help="producer: the forward pass of its producer's own package, installed here.")
    ] = None,
    config: Config = None,
    revision: Revision = None,
    dtype: Annotated[str | None, typer.Option(help="The dtype it was converted to, if one was given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a converted head, drafting in vLLM, with the trained one: logits and drafts. Exit code 1 if they differ.

    Options that were given to `convert` must be given here too.
    """
    from .verify import verify as run
    from .verify.check import sentence

    options = replace(options, dtype=dtype)
    with Console(stderr=True).status("verifying"):
        found = run(head, target, converted, options, prompts, config, revision, plain, against)
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{'verified' if found.passed else 'not the same'}: {found.why or sentence(found.as_json())}")
        if found.why:
            console.print(sentence(found.as_json()))
    if not found.passed:
        raise typer.Exit(1)
