"""Everything that a training step needs, from a recipe, a target and its data."""

from __future__ import annotations

import torch

from ..targets.target import Target
from .conditioning import condition
from .corpus import Corpus, collate
from .heads import aux_layers, head_config, new_head
from .objective import Objective
from .recipe import Recipe
from .teacher import Teacher

#: Conversations that tell how large a head's inputs are.
_SAMPLE = 16


def build(recipe: Recipe, target: Target, corpus: Corpus, device: torch.device) -> tuple[Teacher, Objective]:
    """A teacher and the objective of an untrained head, on `device`; the same ones for the same arguments."""
    config = head_config(recipe, target)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    teacher = Teacher(target, aux_layers(config), dtype, device)
    counts = corpus.token_counts(target.vocab_size)
    head = new_head(config, teacher.lm_head, counts, recipe.seed)
    objective = Objective(head, teacher, recipe, counts).to(device)
    sample = collate(corpus.train[:_SAMPLE], recipe.batch.length)
    condition(head, teacher, sample.to(device))
    return teacher, objective
