"""What a head is trained for: at every step of a chain, what the target says there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..reference import ReferenceHead, unroll
from .corpus import MicroBatch
from .recipe import Recipe
from .teacher import States, Teacher
from .vocabulary import Draw, Vocabulary

#: Logits are computed for as many rows at a time as have about this many entries.
_ENTRIES = 1 << 26


class Objective(nn.Module):
    """Loss of a head on a micro-batch; a module of its own so that distributed wrappers can hold it.

    `counts` [V] are the token frequencies that a loss over part of the vocabulary goes by. In evaluation
    mode the loss is over all of it.
    """

    def __init__(self, head: ReferenceHead, teacher: Teacher, recipe: Recipe, counts: Tensor | None = None) -> None:
        super().__init__()
        self.head, self.recipe = head, recipe
        self._teacher = teacher
        self._vocabulary = None if counts is None else Vocabulary.of(counts, recipe.loss.vocabulary)
        # Lent in the target's precision: nothing is cast anew in every step.
        head.attach_target(teacher.embedding, teacher.lm_head, teacher.lm_head_bias)
        weights = [recipe.unroll.decay**j for j in range(recipe.unroll.steps)]
        self._weights = [w / sum(weights) for w in weights]
        config = head.config
        ids = head.target_ids(torch.arange(config.draft_vocab)) if config.reduced_vocab else None
        self.register_buffer("draftable", ids, persistent=False)
        drafted = torch.zeros(config.vocab_size, dtype=torch.bool)
        self.register_buffer("drafted", drafted if ids is None else drafted.index_fill(0, ids, True), persistent=False)

    def forward(self, batch: MicroBatch, states: States, counts: Tensor, noise: int) -> tuple[Tensor, Tensor]:
        """The micro-batch's share of the step's loss, and sums over its positions [steps, 3]: loss,
        drafts that are the target's argmax (of the tokens drawn, where the loss is over part of the
        vocabulary), and argmaxes that the draft vocabulary holds.

        `states` are of ids[:, :-1]; `counts` [steps] are the positions of the whole optimiser step, of
        which this may be a part; `noise` seeds what is random: noise on the features, tokens drawn.
        """
        ids, steps = batch.ids, self.recipe.unroll.steps
        text = nn.functional.pad(ids, (0, steps))
        hidden = self._disturbed(states.hidden, noise)
        features = [step.features for step in unroll(self.head, ids, hidden, steps, text=text)]
        sums = torch.zeros(steps, 3, device=ids.device)
        loss = sum((f.sum() * 0.0 for f in features), ids.new_zeros((), dtype=torch.float))
        draw = self._vocabulary.draw(noise, ids.device) if self._vocabulary and self.training else None
        width = self._teacher.lm_head.shape[0] if draw is None else len(draw.rows)
        with self._lent(draw):
            for b, q in (chunk.unbind(1) for chunk in batch.places.split(max(1, _ENTRIES // width))):
                wanted = self._Wanted(self, states.last[b, q], draw)
                for j in range(steps):
                    # Step j of the chain that starts at p predicts what the target says at p + 1 + j.
                    started = features[j][b, (q - 1 - j).clamp_min(0)]
                    step_loss, hits = self._compare(started, wanted, q > j)
                    loss = loss + self._weights[j] * step_loss / counts[j].clamp_min(1)
                    sums[j] += torch.stack((step_loss.detach(), *hits))
        return loss, sums

    @contextlib.contextmanager
    def _lent(self, draw: Draw | None) -> Iterator[None]:
        """For a while, the head is lent only the rows of the target's lm_head that were drawn."""
        if draw is None:
            yield
            return
        teacher, head = self._teacher, self.head
        bias = None if teacher.lm_head_bias is None else teacher.lm_head_bias[draw.rows]
        head.attach_target(teacher.embedding, teacher.lm_head[draw.rows], bias)
        try:
            yield
        finally:
            head.attach_target(teacher.embedding, teacher.lm_head, teacher.lm_head_bias)

    class _Wanted:
        """What the target says at some positions: its features, argmax and distribution over draftable tokens."""

        def __init__(self, objective: Objective, last: Tensor, draw: Draw | None) -> None:
            self.last = last
            self.draw = draw
            logits = objective._teacher.logits(last, None if draw is None else draw.rows)
            self.token = logits.argmax(-1)
            self.covered = torch.ones_like(self.token, dtype=torch.bool)
            if objective.draftable is not None:
                self.covered = objective.drafted[self.token]
                logits = logits[:, objective.draftable]
            self.logits = logits if objective.recipe.loss.logit_mse else None
            self.probabilities = (logits if draw is None else logits + draw.correction).softmax(-1)

    def _compare(self, features: Tensor, wanted: _Wanted, counted: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Summed loss at the positions [N] that are `counted`, and how many drafts are right and rightly draftable."""
        weight = self.recipe.loss
        total = features.new_zeros(len(features), dtype=torch.float)
        if weight.smooth_l1:
            distance = nn.functional.smooth_l1_loss(features.float(), wanted.last.float(), reduction="none")
            total = total + weight.smooth_l1 * distance.mean(-1)
        if weight.mse:
            total = total + weight.mse * (features.float() - wanted.last.float()).square().mean(-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(weight.cross_entropy or weight.logit_mse)):
            logits = self.head.logits(features)
        if weight.cross_entropy:
            correction = None if wanted.draw is None else wanted.draw.correction
            total = total + weight.cross_entropy * _SoftCrossEntropy.apply(logits, wanted.probabilities, correction)
        if weight.logit_mse:
            squares = (logits.float() - wanted.logits).square()
            if wanted.draw is not None:  # each drawn token stands for exp(correction) of them
                squares = squares * wanted.draw.correction.exp() * (squares.shape[-1] / self._teacher.lm_head.shape[0])
            total = total + weight.logit_mse * squares.mean(-1)
        drafts = self.head.target_ids(logits.detach().argmax(-1))
        covered = wanted.covered & counted
        right = ((drafts == wanted.token) & counted).sum().float()
        return (total * covered).sum(), (right, covered.sum().float())

    def _disturbed(self, hidden: Tensor, seed: int) -> Tensor:
        """Uniform noise on the features, the same for the same seed on any number of processes."""
        width = self.recipe.feature_noise
        if not width or not self.training:
            return hidden
        generator = torch.Generator(hidden.device).manual_seed(seed)
        noise = torch.rand(hidden.shape, generator=generator, device=hidden.device) * 2 - 1
        return hidden + (noise * width).to(hidden.dtype)


class _SoftCrossEntropy(torch.autograd.Function):
    """log sum exp(z + c) - sum p z of each row, c being 0 without a `correction`.

    Keeps only its gradient, softmax(z + c) - p, in the precision of z.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, probabilities: Tensor, correction: Tensor | None) -> Tensor:
        raised = logits.float() if correction is None else logits.float() + correction
        log = raised.log_softmax(-1)
        loss = -(probabilities * (log if correction is None else log - correction)).sum(-1)
        context.save_for_backward(log.exp_().sub_(probabilities).to(logits.dtype))
        return loss

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None
