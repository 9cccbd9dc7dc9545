"""The verbs about trained heads: `inspect` and `convert`. Imports nothing heavy until one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UsageError

Head = Annotated[str, typer.Argument(metavar="HEAD", help="Folder, file or hub id of the trained head.")]
TargetOption = Annotated[str, typer.Option(help="The model it drafts for: a folder or a hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Producer = Annotated[str | None, typer.Option(help="Who trained it, where files cannot tell.")]
Config = Annotated[Path | None, typer.Option(help="The head's config.json, if it does not lie beside the weights.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
TokenPairing = Annotated[
    str | None, typer.Option(help="Trained on the token behind the hidden state (next) or at it (same).")
]
AuxIds = Annotated[str | None, typer.Option(help="Layers of the target that fc reads, in its order: 2,15,27.")]
AuxConvention = Annotated[
    str | None, typer.Option(help="They count streams between layers (boundary, vLLM's way) or layers' outputs.")
]
RopeTheta = Annotated[float | None, typer.Option(help="RoPE base it was trained with.")]
D2t = Annotated[
    str | None, typer.Option("--d2t", help="d2t holds offsets (offset) or ids (absolute), or is wrong (identity, t2d).")
]
FcOrder = Annotated[str | None, typer.Option(help="Order of fc's columns: embed-hidden or hidden-embed.")]
Embedding = Annotated[Path | None, typer.Option(help="File with the head's own embedding table.")]
TokenMap = Annotated[Path | None, typer.Option(help="File with the tokens that a reduced lm_head drafts.")]
Drop = Annotated[list[str] | None, typer.Option(metavar="TENSOR", help="Leave a tensor out. Repeatable.")]
Flags = Annotated[
    list[str] | None, typer.Option("--set", metavar="FLAG=VALUE", help="Set a flag of its config. Repeatable.")
]


def gather_options(flags: list[str] | None, drop: list[str] | None, aux_ids: str | None, **others: Any) -> Any:
    """`Options` from what the command line gives."""
    from .options import Options

    return Options(
        flags=dict(_flag(text) for text in flags or ()), drop=tuple(drop or ()), aux_ids=_numbers(aux_ids), **others
    )


def inspect(
    head: Head,
    producer: Producer = None,
    token_pairing: TokenPairing = None,
    aux_ids: AuxIds = None,
    aux_ids_convention: AuxConvention = None,
    config: Config = None,
    revision: Revision = None,
    target: Annotated[
        str | None, typer.Option(help="Also say what stock vLLM would make of it for this target.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a head is: its producer with the evidence, its tensors, its config, what stock vLLM would do."""
    from . import inspect_head

    options = gather_options(
        None, None, aux_ids, producer=producer, token_pairing=token_pairing, aux_ids_convention=aux_ids_convention
    )
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


def convert(
    head: Head,
    target: TargetOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    producer: Producer = None,
    token_pairing: TokenPairing = None,
    aux_ids: AuxIds = None,
    aux_ids_convention: AuxConvention = None,
    rope_theta: RopeTheta = None,
    d2t: D2t = None,
    fc_order: FcOrder = None,
    embedding: Embedding = None,
    token_map: TokenMap = None,
    drop: Drop = None,
    flags: Flags = None,
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

    options = gather_options(
        flags, drop, aux_ids, producer=producer, token_pairing=token_pairing, aux_ids_convention=aux_ids_convention,
        rope_theta=rope_theta, d2t=d2t, fc_order=fc_order, embedding=embedding, token_map=token_map, dtype=dtype,
    )  # fmt: skip
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


def _sentence(figures: dict[str, Any]) -> str:
    from .verify.check import sentence

    return sentence(figures)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--aux-ids is {text}", "Numbers with commas were expected", "As in --aux-ids 2,15,27"
        ) from None


def _flag(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text} has no value", "FLAG=VALUE was expected", "As in --set feedback=post_norm")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word
