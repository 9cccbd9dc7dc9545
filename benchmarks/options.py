"""What several verbs of `vllm-eagle bench` take, and how they deliver what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

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


def check_files(output: Path | None, html: Path | None, plot: Path | None) -> None:
    """Raises UsageError where one of the files that were asked for cannot be written."""
    from .report.plots import check_format

    if plot is not None:
        check_format(plot)
    for file in (output, html, plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file.parent} is not a folder", "", "Make it first")


def deliver(result: BaseModel, as_json: bool, output: Path | None) -> None:
    """Write and print the JSON that was asked for."""
    text = result.model_dump_json()
    if output is not None:
        output.write_text(text + "\n")
    if as_json:
        print(text)


def refuse_partial(stopped: str | None, kept: str = "What was finished is reported") -> None:
    """Raises HeadError where a run ended early, after all that it left has been delivered."""
    if stopped:
        raise HeadError(f"the run ended early: {stopped.rstrip('.')}", f"{kept}, marked as partial")


def terminal() -> Any:
    """A console of rich's, wide enough for our tables where it is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=120)
