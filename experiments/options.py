"""Options that several experiments take, and how they write what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from vllm_eagle_plugin.benchmarks.environment import environment
from vllm_eagle_plugin.benchmarks.methods import Method, make_method
from vllm_eagle_plugin.benchmarks.tree_shapes import tree_method

Target = Annotated[str, typer.Option(help="The target: a folder or a hub id.")]
Head = Annotated[str, typer.Option(help="A converted head for it.")]
Tree = Annotated[str, typer.Option(help="As `bench sweep` takes it: auto/16, 4x5/16, 4,2,1.")]
Prompts = Annotated[str, typer.Option(help="Questions to draw prompts from.")]
Longest = Annotated[int, typer.Option(help="Tokens of the longest answer.")]
LongestPrompt = Annotated[int, typer.Option(help="Tokens of the longest prompt.")]
Output = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]


def tree_of(head: str, tree: str) -> Method:
    """`head` drafting trees.

    Raises:
        HeadError: no such head.
        UsageError: no such tree.
    """
    return tree_method(make_method(head, None, 1), tree)


def write(output: Path | None, kind: str, load_before: float, **figures: Any) -> None:
    """Write `figures` with where and how they were measured, if a file was asked for."""
    if output is None:
        return
    about = {"kind": kind, "schema_version": 1, "environment": environment(load_before).model_dump()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(about | figures, indent=1) + "\n")
