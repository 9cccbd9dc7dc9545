"""Training a head: what fits together is checked, then the run starts or goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from .. import __version__
from ..errors import HeadError, UsageError
from ..targets.target import read_target
from .build import build
from .corpus import read_corpus
from .heads import head_config
from .interruption import is_lost_worker
from .recipe import Recipe
from .run import Options, Outcome, Run
from .run_folder import RunFolder
from .teacher import identify
from .warm_start import Start

__all__ = ["Options", "Outcome", "train"]


def train(
    recipe: Recipe,
    target_name: str,
    data: Path | Sequence[Path],
    output: Path,
    options: Options | None = None,
    start: Start | None = None,
) -> Outcome:
    """Train a head and write it to `output`, or go on with the run that is there.

    data: folders of `train data`; what is held out is of the first. start: a trained head to go on from, in place of
    the untrained one that the recipe describes.

    Raises:
        HeadError: the data or target do not fit, the loss is no number any more, the disk is full or a
            worker died. The last checkpoint is kept, and the same command goes on from it.
        UsageError: the settings contradict each other, or those of the run in `output`.
    """
    options = options or Options()
    torch.manual_seed(recipe.seed)
    kinds = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(mixed_precision="bf16" if recipe.precision == "bf16" else "no", kwargs_handlers=kinds)
    if recipe.batch.micro_batches % accelerator.num_processes:
        parts = math.lcm(recipe.batch.micro_batches, accelerator.num_processes)
        tokens = max(recipe.batch.tokens, parts * recipe.batch.length)
        raise UsageError(
            f"batch.micro_batches is {recipe.batch.micro_batches} for {accelerator.num_processes} processes",
            "The processes share the parts of a step evenly",
            f"Pass --set batch.micro_batches={parts} --set batch.tokens={tokens}",
        )
    target = read_target(target_name)
    if start is None:
        head_config(recipe, target)  # refuses what does not fit before anything is written
    identity = identify(target)
    corpus = read_corpus([data] if isinstance(data, Path) else data, identity, recipe.held_out)
    folder = RunFolder(output)
    description = {
        "recipe": dataclasses.asdict(recipe),
        "target": identity,
        "data": {"digest": corpus.digest, "answer_tokens": corpus.answer_tokens},
        "version": __version__,
        **({"start": {"name": start.name, "digest": start.digest}} if start else {}),
    }
    with accelerator.main_process_first():  # the others find what it wrote
        folder.open(description)
    teacher, objective = build(recipe, target, corpus, accelerator.device, start)
    run = Run(recipe, options, target, corpus, folder, output, accelerator, teacher, objective, start)
    try:
        return run.go()
    except RuntimeError as error:
        if accelerator.num_processes > 1 and is_lost_worker(error):
            raise HeadError(
                f"another worker of this run stopped at step {run.progress.step + 1}: {str(error).splitlines()[0]}",
                f"The last checkpoint is of step {run.saved_step}",
                "Run the same command again to go on from there",
            ) from None
        raise
