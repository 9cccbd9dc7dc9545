"""What a head is trained for: at every step of a chain, what the target says there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..reference import ReferenceHead, unroll
from .corpus import MicroBatch
from .recipe import Recipe
from .teacher import States, Teacher

#: Logits are computed for as many rows at a time as have about this many entries.
_ENTRIES = 1 << 26


class Objective(nn.Module):
    """Loss of a head on a micro-batch; a module of its own so that distributed wrappers can hold it."""

    def __init__(self, head: ReferenceHead, teacher: Teacher, recipe: Recipe) -> None:
        super().__init__()
        self.head, self.recipe = head, recipe
        self._teacher = teacher
        # Lent in the target's precision: nothing is cast anew in every step.
        head.attach_target(teacher.embedding, teacher.lm_head, teacher.lm_head_bias)
        weights = [recipe.unroll.decay**j for j in range(recipe.unroll.steps)]
        self._weights = [w / sum(weights) for w in weights]
        config = head.config
        ids = head.target_ids(torch.arange(config.draft_vocab)) if config.reduced_vocab else None
        self.register_buffer("draftable", ids, persistent=False)

    def forward(self, batch: MicroBatch, states: States, counts: Tensor, noise: int) -> tuple[Tensor, Tensor]:
        """The micro-batch's share of the step's loss, and sums over its positions [steps, 3]: loss,
        drafts that are the target's argmax, and argmaxes that the draft vocabulary holds.

        `states` are of ids[:, :-1]; `counts` [steps] are the positions of the whole optimiser step, of
        which this may be a part; `noise` seeds the noise on the features.
        """
        ids, steps = batch.ids, self.recipe.unroll.steps
        text = nn.functional.pad(ids, (0, steps))
        hidden = self._disturbed(states.hidden, noise)
        features = [step.features for step in unroll(self.head, ids, hidden, steps, text=text)]
        sums = torch.zeros(steps, 3, device=ids.device)
        loss = sum((f.sum() * 0.0 for f in features), ids.new_zeros((), dtype=torch.float))
        rows = batch.answers[:, 1:].nonzero()  # the target at position q of sequence b predicts an answer token
        for b, q in (chunk.unbind(1) for chunk in rows.split(max(1, _ENTRIES // self._teacher.lm_head.shape[0]))):
            wanted = self._Wanted(self, states.last[b, q])
            for j in range(steps):
                # Step j of the chain that starts at p predicts what the target says at p + 1 + j.
                kept = q > j
                if not bool(kept.all()):
                    step_loss, hits = self._compare(features[j][b[kept], q[kept] - 1 - j], wanted.rows(kept))
                else:
                    step_loss, hits = self._compare(features[j][b, q - 1 - j], wanted)
                loss = loss + self._weights[j] * step_loss / counts[j].clamp_min(1)
                sums[j] += torch.stack((step_loss.detach(), *hits))
        return loss, sums

    class _Wanted:
        """What the target says at some positions: its features, argmax and distribution over draftable tokens."""

        def __init__(self, objective: Objective, last: Tensor) -> None:
            self.last = last
            logits = objective._teacher.logits(last)
            self.token = logits.argmax(-1)
            self.covered = torch.ones_like(self.token, dtype=torch.bool)
            if objective.draftable is not None:
                self.covered = torch.isin(self.token, objective.draftable)
                logits = logits[:, objective.draftable]
            self.logits = logits if objective.recipe.loss.logit_mse else None
            self.probabilities = logits.softmax(-1)

        def rows(self, kept: Tensor) -> Objective._Wanted:
            chosen = object.__new__(type(self))
            chosen.__dict__ = {k: None if v is None else v[kept] for k, v in vars(self).items()}
            return chosen

    def _compare(self, features: Tensor, wanted: _Wanted) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Summed loss at some positions, and how many drafts are right and rightly draftable."""
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
            total = total + weight.cross_entropy * _SoftCrossEntropy.apply(logits, wanted.probabilities)
        if weight.logit_mse:
            total = total + weight.logit_mse * (logits.float() - wanted.logits).square().mean(-1)
        drafts = self.head.target_ids(logits.detach().argmax(-1))
        right = (drafts == wanted.token).sum().float()
        return (total * wanted.covered).sum(), (right, wanted.covered.sum().float())

    def _disturbed(self, hidden: Tensor, seed: int) -> Tensor:
        """Uniform noise on the features, the same for the same seed on any number of processes."""
        width = self.recipe.feature_noise
        if not width or not self.training:
            return hidden
        generator = torch.Generator(hidden.device).manual_seed(seed)
        noise = torch.rand(hidden.shape, generator=generator, device=hidden.device) * 2 - 1
        return hidden + (noise * width).to(hidden.dtype)


class _SoftCrossEntropy(torch.autograd.Function):
    """-sum p log softmax(z) of each row; keeps only its gradient, softmax(z) - p, in the precision of z."""

    @staticmethod
    def forward(context: Any, logits: Tensor, probabilities: Tensor) -> Tensor:
        log = logits.float().log_softmax(-1)
        loss = -(probabilities * log).sum(-1)
        context.save_for_backward(log.exp_().sub_(probabilities).to(logits.dtype))
        return loss

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = context.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None
