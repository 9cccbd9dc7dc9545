"""What several verbs of `vllm-eagle bench` take, and how they deliver what they found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import HeadError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

Target = Annotated[str, typer.Option(help="The model that decides: a folder or a hub id.")]
Prompts = Annotated[str, typer.Option(help="JSONL, ShareGPT JSON or text file, data set on the hub, or `builtin`.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many questions.", min=1)]
Tokens = Annotated[int, typer.Option(help="Most tokens of an answer.", min=2)]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", min=0)]
Concurrency = Annotated[int, typer.Option(help="Requests at a time.", min=1)]
Engine = Annotated[str | None, typer.Option("--engine-args", help="vLLM engine arguments as JSON.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON here too.")]
Html = Annotated[Path | None, typer.Option(help="Write one self-contained page here.")]
Plot = Annotated[Path | None, typer.Option(help="Write a picture here: .png, .svg or .pdf.")]
Head = Annotated[str | None, typer.Option(help="A converted head, or another draft model.")]
Method = Annotated[str | None, typer.Option(help="ngram, draft_model, medusa, suffix, ...: as vLLM names it.")]
Spec = Annotated[str | None, typer.Option(help="More of vLLM's speculative config, as JSON.")]
Quick = Annotated[bool, typer.Option("--quick", help="A first answer: 8 questions of 32 tokens at most.")]
K = Annotated[int, typer.Option("-k", "--num-speculative-tokens", help="Drafts per step.", min=1)]


def few(quick: bool, limit: int | None, max_tokens: int) -> tuple[int | None, int]:
    """Limits of questions and of tokens; what is asked for a first answer costs less than the engine's start."""
    return (min(limit or 8, 8), min(max_tokens, 32)) if quick else (limit, max_tokens)


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


def finish(
    result: Any, partial: str | None, as_json: bool, output: Path | None, html: Path | None, plot: Path | None
) -> None:
    """Everything that was asked for of a result: tables, JSON, page, picture.

    Raises:
        HeadError: the run ended early; all that it left has been delivered.
    """
    from .report import write_report
    from .report.terminal import terminal

    deliver(result, as_json, output)
    write_report(result, html, plot, None if as_json else terminal())
    if partial:
        raise HeadError(
            f"the run ended early: {partial.rstrip('.')}", "What was finished is reported, marked as partial"
        )
