"""The verbs that take a head to its users: `serve` and `push`. Imports nothing heavy until it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .conversion.cli_options import AsJson, Config, Revision, with_reading_options


@with_reading_options
def serve(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The model to serve: a folder or a hub id.")],
    head: Annotated[str, typer.Option(help="The trained head, converted or as its trainer left it.")],
    options: Any,
    tokens: Annotated[
        int | None, typer.Option("-k", help="num_speculative_tokens; of a tree: its most nodes.", min=1)
    ] = None,
    tree: Annotated[
        str | None, typer.Option(metavar="auto|SPEC", help="Draft trees: auto, static, dynamic, or a JSON object.")
    ] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Draft only as much as pays.")] = False,
    verify: Annotated[bool, typer.Option(help="Prove a converted head before it is served.")] = True,
    config: Config = None,
    revision: Revision = None,
    show: Annotated[bool, typer.Option("--print", help="Print the plain `vllm serve` command instead.")] = False,
    yaml: Annotated[bool, typer.Option("--yaml", help="Print vLLM's config file instead.")] = False,
) -> None:
    """Serve TARGET with a draft head. Every other option is passed on to `vllm serve`.

    vllm-eagle serve HuggingFaceTB/SmolLM2-135M-Instruct --head ./eagle3

    vllm-eagle serve TARGET --head HEAD --tree auto --port 8001 --max-model-len 4096
    """
    from .launch import converted, launch

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    ready = converted(head, target, options, verify=verify, config=config, revision=revision, say=say)
    found = launch(target, ready, tokens=tokens, tree=tree, adaptive=adaptive, extra=context.args)
    if show or yaml:
        print(found.yaml if yaml else found.command)
        return
    say(found.command)
    sys.stderr.flush()
    found.start()


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A converted head.")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="ORGANISATION/NAME on the hub.")],
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the target, where the head does not name it.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card, upload nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a converted head to the hub, with a card that says what it drafts for.

    vllm-eagle push ./converted my-org/llama-eagle3

    vllm-eagle push ./converted my-org/llama-eagle3 --base-model meta-llama/Llama-3.1-8B-Instruct --private
    """
    from .push import push as run

    made = run(folder, repository, base_model=base_model, private=private, dry_run=dry_run)
    if as_json:
        print(json.dumps({"repository": repository, "card" if dry_run else "url": made}))
    else:
        print(made)
