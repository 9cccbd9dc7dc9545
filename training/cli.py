"""`vllm-eagle train`: data, heads, and what can be said about them. Each verb imports what it needs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..conversion.cli_options import Head, with_reading_options
from ..errors import UsageError

train_app = typer.Typer(help="Make a head from the target alone.", no_args_is_help=True)

TargetOption = Annotated[str, typer.Option(help="The model to learn: a folder or a hub id.")]
RecipeOption = Annotated[str, typer.Option(help="Name of a shipped recipe (`train recipes`), or a TOML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change one setting of the recipe.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


@train_app.command("recipes")
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one; default: list them.")] = None) -> None:
    """List the shipped recipes, or print one, to read or to change."""
    from .recipe import recipe_text, shipped_recipes

    if name is not None:
        print(recipe_text(name), end="")
        return
    for recipe in shipped_recipes():
        about = [line.removeprefix("# ") for line in recipe_text(recipe).splitlines() if line.startswith("# ")]
        print(f"{recipe:20} {' '.join(about)}")


@train_app.command("data")
def data(
    target: TargetOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards.")],
    tokens: Annotated[int, typer.Option(min=1, help="Answer tokens the folder is to hold.")] = 1_000_000,
    prompts: Annotated[Path | None, typer.Option(help="Prompts: JSONL, or text with one a line.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Prompts of a data set, as `datasets` names it.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "train",
    greedy_share: Annotated[float, typer.Option(help="Share of answers at temperature 0.")] = 0.7,
    temperature: Annotated[float, typer.Option(help="Temperature of the others.")] = 0.8,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 320,
    per_shard: Annotated[int, typer.Option(min=1, help="Prompts of one shard.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    backend: Annotated[str, typer.Option(help="vllm, plain (transformers alone), or auto.")] = "auto",
    batch: Annotated[int, typer.Option(min=0, help="Sequences at once; 0: as suits the backend.")] = 0,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    as_json: JsonOption = False,
) -> None:
    """Let the target write conversations to learn from; goes on where it stopped."""
    from .data import DataSettings, DataWriter
    from .display import data_progress

    settings = DataSettings(
        prompts=None if prompts is None else str(prompts),
        dataset=dataset,
        split=split,
        greedy_share=greedy_share,
        temperature=temperature,
        answer_tokens=answer_tokens,
        per_shard=per_shard,
        seed=seed,
    )
    writer = DataWriter(target, output, settings, backend, batch, precision)
    shards = list(data_progress(writer.write(tokens), tokens))
    total = shards[-1].total_tokens if shards else 0
    result = {"output": str(output), "shards": len(shards), "answer_tokens": total}
    print(json.dumps(result) if as_json else f"{output}: {len(shards)} shards, {total:,} answer tokens")


@train_app.command("head")
def head(
    recipe: RecipeOption,
    target: TargetOption,
    data: Annotated[list[Path], typer.Option(help="Folder of shards from `train data`. Repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the head and its run.")],
    trained: Annotated[str | None, typer.Option("--from", metavar="HEAD", help="Go on from a trained head.")] = None,
    changes: SetOption = None,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so long, to go on later; 0: do not.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    state_cache: Annotated[float, typer.Option(min=0, help="GiB of disk for the target's hidden states.")] = 0,
    draft_tokens: Annotated[int, typer.Option("-k", min=1, help="Drafts per chain when measured.")] = 3,
    tables: Annotated[bool, typer.Option(help="Write a surgery head's copies of the target's tables.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a head, or go on with the run in OUTPUT; several processes with `accelerate launch -m`."""
    from dataclasses import asdict

    from ..targets.target import read_target
    from .export import next_command
    from .recipe import load_recipe
    from .trainer import Options, train
    from .warm_start import fitted, read_start

    chosen, start = load_recipe(recipe, changes), None
    if trained is not None:
        start = read_start(trained, read_target(target))
        chosen = fitted(chosen, start.head.config)
        if chosen.family != start.family:
            raise UsageError(
                f"the recipe is of the family {chosen.family}, {trained} is a head of the family {start.family}",
                "A recipe of the head's own family was expected",
                f"Pass --recipe {start.family}",
            )
    command = shlex.join(["vllm-eagle", *sys.argv[1:]])
    options = Options(minutes, checkpoint_every, int(state_cache * 2**30), draft_tokens, tables, command)
    done = train(chosen, target, data, output, options, start)
    result: dict[str, Any] = {
        "output": str(output),
        "finished": done.finished,
        "step": done.progress.step,
        "steps": done.steps,
        **{k: v for k, v in asdict(done.progress).items() if k.startswith("best")},
    }
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"{output}: step {done.progress.step} of {done.steps}, held-out acceptance length {result['best_acceptance']:.3f}"
    )
    if not done.finished:
        print("Run the same command again to go on.")
    else:
        print(next_command(done.family, str(output), target, chosen.unroll.steps))


@train_app.command("adapt")
@with_reading_options
def adapt(
    head: Head,
    target: TargetOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the data, the run and the head.")],
    options: Any,
    prompts: Annotated[Path | None, typer.Option(help="Your prompts: JSONL, or text with one a line.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Answer tokens to learn from.")] = 200_000,
    changes: SetOption = None,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so long, to go on later; 0: do not.")] = 0,
    draft_tokens: Annotated[int, typer.Option("-k", min=1, help="Drafts per chain when measured.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Train a head that exists further, on what its target answers to your prompts.

    vllm-eagle train adapt HEAD --target TARGET --prompts mine.jsonl -o adapted

    vllm-eagle train adapt HEAD --target MY-FINE-TUNE -o adapted
    """
    from .adapt import adapt as run
    from .adapt import sentences
    from .export import next_command
    from .trainer import Options

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    settings = Options(minutes=minutes, draft_tokens=draft_tokens, command=shlex.join(["vllm-eagle", *sys.argv[1:]]))
    done = run(
        head,
        target,
        output,
        prompts=prompts,
        tokens=tokens,
        changes=changes,
        options=settings,
        reading=options,
        say=say,
    )
    if as_json:
        print(json.dumps(done.as_json()))
        return
    print("\n".join(sentences(done)))
    print(next_command("", str(done.output), target, 0) if done.finished else "Run the same command again to go on.")


@train_app.command("tokens")
def tokens(
    target: TargetOption,
    data: Annotated[Path, typer.Option(help="Folder of shards from `train data`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Tokens to list.")] = 8000,
) -> None:
    """List the tokens that the target says most often, for `convert --token-map`."""
    from ..targets.target import read_target
    from .corpus import read_corpus
    from .files import disk_errors, write_json
    from .teacher import identify
    from .vocabulary import most_frequent

    read = read_target(target)
    if count > read.vocab_size:
        raise UsageError(f"-n {count}", f"The target has {read.vocab_size} tokens")
    corpus = read_corpus([data], identify(read), 1)
    said = corpus.token_counts(read.vocab_size)
    found = most_frequent(said, count)
    with disk_errors(output, "Nothing was written"):
        write_json(output, found.tolist())
    print(f"{output}: {count:,} tokens, {said[found].sum() / said.sum():.2%} of what the target said")


@train_app.command("plot")
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `train head`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write (.svg or .png).")],
) -> None:
    """Draw loss and held-out acceptance of runs over the tokens they saw."""
    from .plots import draw

    draw(runs, output)
    print(output)


@train_app.command("speed")
def speed(
    recipe: RecipeOption,
    target: TargetOption,
    data: Annotated[Path, typer.Option(help="Folder of shards from `train data`.")],
    changes: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after one to warm up.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Training tokens per second, and their share of this machine's matrix multiplication ceiling."""
    from .recipe import load_recipe
    from .speed import measure_speed

    found = measure_speed(load_recipe(recipe, changes), target, data, steps)
    if as_json:
        print(json.dumps(found))
        return
    print(
        f"{found['tokens_per_second']:,.0f} answer tokens/s, {found['flops_per_token'] / 1e6:,.0f} MFLOP each: "
        f"{found['flops'] / 1e9:,.1f} of {found['ceiling_flops'] / 1e9:,.1f} GFLOP/s ({found['share']:.0%})"
    )
