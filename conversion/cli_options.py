"""What every verb about heads takes on the command line, said once."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError

Head = Annotated[str, typer.Argument(metavar="HEAD", help="Folder, file or hub id of the trained head.")]
TargetOption = Annotated[str, typer.Option(help="The model it drafts for: a folder or a hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Config = Annotated[Path | None, typer.Option(help="The head's config.json, if it does not lie beside the weights.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


def _declared(
    producer: Annotated[str | None, typer.Option(help="Who trained it, where files cannot tell.")] = None,
    token_pairing: Annotated[
        str | None, typer.Option(help="Trained on the token behind the hidden state (next) or at it (same).")
    ] = None,
    aux_ids: Annotated[
        str | None, typer.Option(help="Layers of the target that fc reads, in its order: 2,15,27.")
    ] = None,
    aux_ids_convention: Annotated[
        str | None, typer.Option(help="They count streams between layers (boundary, vLLM's way) or layers' outputs.")
    ] = None,
    rope_theta: Annotated[float | None, typer.Option(help="RoPE base it was trained with.")] = None,
    d2t: Annotated[
        str | None,
        typer.Option("--d2t", help="d2t holds offsets (offset) or ids (absolute), or is wrong (identity, t2d)."),
    ] = None,
    fc_order: Annotated[str | None, typer.Option(help="Order of fc's columns: embed-hidden or hidden-embed.")] = None,
    embedding: Annotated[Path | None, typer.Option(help="File with the head's own embedding table.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="LoRA adapter to merge into the head (its folder), or none to leave out one beside it."),
    ] = None,
    token_map: Annotated[
        Path | None, typer.Option(help="Tokens to draft from: a file of their ids. Cuts the lm_head to them.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="TENSOR", help="Leave a tensor out. Repeatable.")] = None,
    flags: Annotated[
        list[str] | None, typer.Option("--set", metavar="FLAG=VALUE", help="Set a flag of its config. Repeatable.")
    ] = None,
) -> None:
    """The options that say what a head's files do not, as typer reads them; they are those of `Options`."""


def with_reading_options(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with all of `_declared` on its command line; they reach it as one `Options`, its `options`."""
    declared = inspect.signature(_declared, eval_str=True).parameters
    own = inspect.signature(verb, eval_str=True).parameters

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        told = {name: given.pop(name) for name in declared}
        verb(**given, options=_gathered(**told))

    shown = [p for name, p in own.items() for p in (declared.values() if name == "options" else (p,))]
    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shown]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer looks at, with the next
    run.__annotations__ = {p.name: p.annotation for p in shown}
    return run


def _gathered(flags: list[str] | None, drop: list[str] | None, aux_ids: str | None, **others: Any) -> Any:
    from .options import Options

    return Options(
        flags=dict(_flag(text) for text in flags or ()), drop=tuple(drop or ()), aux_ids=_numbers(aux_ids), **others
    )


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
