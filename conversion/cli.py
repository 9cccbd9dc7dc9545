"""The verbs about trained heads: `inspect` and `convert`. Imports nothing heavy until one runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .cli_options import AsJson, Config, Head, Revision, TargetOption, with_reading_options


@with_reading_options
def inspect(
    head: Head,
    options: Any,
    config: Config = None,
    revision: Revision = None,
    target: Annotated[
        str | None, typer.Option(help="Also say what stock vLLM would make of it for this target.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a head is: its producer with the evidence, its tensors, its config, what stock vLLM would do."""
    from . import inspect_head

    found = inspect_head(head, options, revision, config, target).as_json()
    if as_json:
        print(json.dumps(found))
        return
    console = Console(markup=False, highlight=False)  # names come from files
    console.print(f"{found['producer']}: {found['summary']}")
    console.print(
        f"{found['sure']}, because of {'; '.join(found['evidence'])}. {found['parameters'] / 1e6:.1f} M parameters."
    )
    if found["could_be"]:
        console.print(f"It could be of {', '.join(found['could_be'])} too.")
    table = Table("tensor", "shape", "dtype")
    for name, tensor in found["tensors"].items():
        table.add_row(name, " x ".join(map(str, tensor["shape"])), tensor["dtype"])
    console.print(table)
    if found["config"] is None:
        console.print("There is no config.json beside it.")
    for note in found["notes"] or ():
        console.print(f"  - {note}")
    if target is None:
        console.print("With --target it also says what stock vLLM would make of it.")
    elif found["refusal"]:
        console.print(f"convert would refuse it: {found['refusal']}")
    else:
        console.print(found["stock"]["text"])


@with_reading_options
def convert(
    head: Head,
    target: TargetOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    options: Any,
    config: Config = None,
    revision: Revision = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as they are.")] = None,
    tokenizer: Annotated[bool, typer.Option("--tokenizer", help="Copy the target's tokenizer too.")] = False,
    verify: Annotated[
        bool, typer.Option(help="Prove in vLLM (or torch) that it drafts as the trained head does.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a head converted earlier.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a head as vLLM serves it, and print the command that does."""
    from . import convert as run
    from .progress import writing

    options = replace(options, dtype=dtype)
    with writing() as progress:
        done = run(
            head, target, output, options, force=force, dry_run=dry_run, config=config, revision=revision,
            tokenizer=tokenizer, verify=verify, progress=progress,
        )  # fmt: skip
    result = done.as_json()
    if as_json:
        print(json.dumps(result))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)  # notes have brackets, names come from files
    console.print(f"{result['producer']}, {result['sure']} ({'; '.join(result['evidence'])})")
    for note in result["notes"]:
        console.print(f"  - {note}")
    for name, why in result["dropped"].items():
        console.print(f"  - {name} left out: {why}")
    kind = "needs this plugin" if result["needs_plugin"] else "serves without this plugin too"
    verb = "written" if done.written else "would be written"
    console.print(f"{verb} as {result['architecture']} ({result['why']}; {kind})")
    if result["verification"]:
        console.print(f"verified: {_sentence(result['verification'])}")
    console.print("\nServe it:" if done.written else "\nIt would be served by:")
    print(result["serve"])
    console.print("\nor, as it names its target itself:")
    print(result["serve_alone"])


def _sentence(figures: dict[str, Any]) -> str:
    from .verify.check import sentence

    return sentence(figures)
