"""Training a reference head by unrolling it on its own states (EAGLE-3's training-time test)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..configs import Eagle3Config, HeadConfig
from ..reference import ReferenceHead, unroll
from .data import Conversation, batches


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    epochs: int = 3
    tokens_per_batch: int = 4096
    length: int = 384
    learning_rate: float = 2e-3
    warmup: float = 0.03
    #: Steps each chain is unrolled, and the weight of each step relative to the one before.
    unroll: int = 4
    decay: float = 0.8
    clip: float = 0.5
    seed: int = 0


class Teacher:
    """The frozen target: what it hands a head over, and what it would say."""

    def __init__(self, folder: str, config: HeadConfig) -> None:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.eval().requires_grad_(False)
        aux = isinstance(config, Eagle3Config) and config.use_aux_hidden_state
        self.layers = config.eagle_aux_hidden_state_layer_ids if aux else None
        self.embedding: Tensor = model.get_input_embeddings().weight
        self.lm_head: Tensor = model.get_output_embeddings().weight

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, T] to the states a head reads [B, T, *] and the last hidden states [B, T, H]."""
        states = self.model.base_model(ids, output_hidden_states=True).hidden_states
        last = states[-1]
        return (last if self.layers is None else torch.cat([states[i] for i in self.layers], -1)), last


def train(
    head: ReferenceHead,
    teacher: Teacher,
    conversations: list[Conversation],
    schedule: Schedule,
    report: Callable[[dict[str, Any]], None],
    save: Callable[[], None],
) -> None:
    """Train `head` in place. `report` gets loss and per-step agreement every few batches; `save` is called
    after each epoch."""
    head.attach_target(teacher.embedding.float(), teacher.lm_head.float())
    parameters = [p for p in head.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    total = schedule.epochs * sum(1 for _ in batches(conversations, schedule.tokens_per_batch, schedule.length, 0))
    warmup = max(1, int(schedule.warmup * total))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda i: min(1.0, (i + 1) / warmup) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1, i / total))) / 2),
    )
    started, seen, step = time.monotonic(), 0, 0
    report({"event": "start", "batches": total, **asdict(schedule)})
    for epoch in range(schedule.epochs):
        for ids, answers in batches(conversations, schedule.tokens_per_batch, schedule.length, schedule.seed + epoch):
            losses, agreement, coverage = zip(*chain_losses(head, teacher, ids, answers, schedule.unroll), strict=True)
            weights = [schedule.decay**i for i in range(len(losses))]
            loss = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimiser.step()
            rate.step()
            seen, step = seen + int(answers.sum()), step + 1
            if not math.isfinite(float(loss)):
                raise FloatingPointError(f"the loss became {float(loss)} at batch {step}; lower the learning rate")
            if step % 20 == 0 or step == total:
                report(
                    {
                        "event": "step",
                        "step": step,
                        "epoch": epoch,
                        "loss": round(float(loss), 4),
                        "agreement": [round(a, 4) for a in agreement],
                        "coverage": round(coverage[0], 4),
                        "answer_tokens": seen,
                        "seconds": round(time.monotonic() - started),
                    }
                )
        save()


def chain_losses(
    head: ReferenceHead, teacher: Teacher, ids: Tensor, answers: Tensor, steps: int
) -> Iterator[tuple[Tensor, float, float]]:
    """For each chained step: the loss against the target's own distribution, how often the argmax agrees,
    and the share of positions whose right token is in the draft vocabulary.

    Step j of the chain from position p reads the true tokens up to p + 1 + j and predicts what the target
    says behind them; only answers count.
    """
    hidden, last = teacher(ids[:, :-1])
    draftable = head.target_ids(torch.arange(head.config.draft_vocab))
    with torch.autocast("cpu", torch.bfloat16):
        chosen = nn.functional.linear(last, teacher.lm_head)  # logits [B, T-1, V] of the token behind each position
        shifted = nn.functional.pad(ids, (0, steps))
        right, probabilities = chosen.argmax(-1), chosen[..., draftable].float().softmax(-1)
        told = answers[:, 1:]
        chain = unroll(head, ids, hidden, steps, lambda step, _: shifted[:, step + 2 : step + 2 + hidden.shape[1]])
        for step, state in enumerate(chain):
            offset = step + 1  # the target's view of the same text is `offset` positions further on
            kept = told[:, offset:]
            logits = state.logits[:, : kept.shape[1]][kept].float()
            wanted = probabilities[:, offset:][kept]
            token = right[:, offset:][kept]
            drafts = state.drafts[:, : kept.shape[1]][kept]
            covered = torch.isin(token, draftable)
            loss = -(wanted * logits.log_softmax(-1)).sum(-1)[covered].mean()
            yield loss, float((drafts == token).float().mean()), float(covered.float().mean())
