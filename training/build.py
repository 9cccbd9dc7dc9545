"""Everything that a training step needs, from a recipe, a target and its data."""

from __future__ import annotations

import copy

import torch

from ..targets.target import Target
from .conditioning import condition
from .corpus import Corpus, collate
from .heads import aux_layers, head_config, new_head
from .objective import Objective
from .recipe import Recipe
from .teacher import Teacher
from .warm_start import Start

#: Conversations that tell how large a head's inputs are.
_SAMPLE = 16


def build(
    recipe: Recipe, target: Target, corpus: Corpus, device: torch.device, start: Start | None = None
) -> tuple[Teacher, Objective]:
    """A teacher and the objective of an untrained head or of `start`, on `device`; the same ones for the same
    arguments."""
    config = head_config(recipe, target) if start is None else start.head.config
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    teacher = Teacher(target, aux_layers(config), dtype, device)
    counts = corpus.token_counts(target.vocab_size)
    head = new_head(config, teacher.lm_head, counts, recipe.seed) if start is None else copy.deepcopy(start.head)
    if config.own_embedding:
        head.embed_tokens.requires_grad_(False)  # most tokens are never met: it would forget them
    objective = Objective(head, teacher, recipe, counts).to(device)
    sample = collate(corpus.train[:_SAMPLE], recipe.batch.length)
    condition(head, teacher, sample.to(device), trained=start is not None)
    return teacher, objective
