"""The verbs that measure heads: `doctor` and `verify`. Imports nothing heavy until one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .cli import (
    AsJson,
    AuxConvention,
    AuxIds,
    Config,
    D2t,
    Drop,
    Embedding,
    FcOrder,
    Flags,
    Head,
    Producer,
    Revision,
    RopeTheta,
    TargetOption,
    TokenMap,
    TokenPairing,
    gather_options,
)  # fmt: skip

Prompts = Annotated[
    Path | None, typer.Option(help="File of prompts (JSON lines or text); default: the target writes its own.")
]


def doctor(
    head: Head,
    target: TargetOption,
    also_target: Annotated[
        list[str] | None, typer.Option(help="Another target that it may be a head for. Repeatable.")
    ] = None,
    prompts: Prompts = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the table too: a .png or .svg.")] = None,
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
    as_json: AsJson = False,
) -> None:
    """Say why a head is accepted less than it should be, and how to convert it right. Exit code 1 if not sound."""
    from .doctor import diagnose
    from .doctor.report import check_plot, draw, show

    options = gather_options(
        flags, drop, aux_ids, producer=producer, token_pairing=token_pairing, aux_ids_convention=aux_ids_convention,
        rope_theta=rope_theta, d2t=d2t, fc_order=fc_order, embedding=embedding, token_map=token_map,
    )  # fmt: skip
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


def verify(
    head: Head,
    target: TargetOption,
    converted: Annotated[Path, typer.Option(help="The folder that `convert` wrote.")],
    prompts: Prompts = None,
    plain: Annotated[bool, typer.Option("--plain", help="In torch alone, also where vLLM is installed.")] = False,
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
    dtype: Annotated[str | None, typer.Option(help="The dtype it was converted to, if one was given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a converted head, drafting in vLLM, with the trained one: logits and drafts. Exit code 1 if they differ.

    Options that were given to `convert` must be given here too.
    """
    from .verify import verify as run
    from .verify.check import sentence

    options = gather_options(
        flags, drop, aux_ids, producer=producer, token_pairing=token_pairing, aux_ids_convention=aux_ids_convention,
        rope_theta=rope_theta, d2t=d2t, fc_order=fc_order, embedding=embedding, token_map=token_map, dtype=dtype,
    )  # fmt: skip
    with Console(stderr=True).status("verifying"):
        found = run(head, target, converted, options, prompts, config, revision, plain)
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{'verified' if found.passed else 'not the same'}: {found.why or sentence(found.as_json())}")
        if found.why:
            console.print(sentence(found.as_json()))
    if not found.passed:
        raise typer.Exit(1)
