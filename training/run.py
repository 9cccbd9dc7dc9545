"""One sitting of a training run: steps, measurements, checkpoints; stops and goes on without a trace."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import HeadError, UsageError
from ..targets.target import Target
from .agreement import Agreement, measure
from .card import write_card
from .corpus import Corpus, MicroBatch, collate, counted_positions, plan_steps
from .display import Display
from .export import export_head
from .files import disk_errors, replaced
from .interruption import asked_to_stop
from .objective import Objective
from .optimisers import optimisers
from .recipe import Recipe
from .run_folder import Progress, RunFolder
from .states import StateSource
from .teacher import Teacher
from .warm_start import Start, export_adapted


@dataclass(frozen=True)
class Options:
    """How a run is carried out, as against what it computes."""

    #: Stop, to go on later, after this many minutes; 0: train to the end.
    minutes: float = 0.0
    #: Steps between checkpoints.
    checkpoint_every: int = 200
    #: Bytes of disk to keep the target's hidden states in; 0: compute them anew each time.
    state_cache: int = 0
    #: Drafts per chain when acceptance is measured.
    draft_tokens: int = 3
    #: Write a surgery head's copies of the target's tables too.
    tables: bool = False
    command: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    finished: bool
    progress: Progress
    steps: int
    output: Path
    family: str


class Run:
    """State of one sitting."""

    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        target: Target,
        corpus: Corpus,
        folder: RunFolder,
        output: Path,
        accelerator: Accelerator,
        teacher: Teacher,
        objective: Objective,
        start: Start | None = None,
    ) -> None:
        self.start = start
        self.recipe, self.options, self.target, self.corpus = recipe, options, target, corpus
        self.folder, self.output, self.accelerator, self.teacher = folder, output, accelerator, teacher
        self.model, *self.optimisers = accelerator.prepare(objective, *optimisers(objective.head, recipe.optimiser))
        self.objective = objective
        self.states = StateSource(teacher, folder.path / "states", options.state_cache)
        self.per_epoch = len(plan_steps(corpus.train, recipe.batch, recipe.seed))
        self.total = recipe.epochs * self.per_epoch
        if not self.total:
            raise UsageError(
                f"the data hold {corpus.answer_tokens} answer tokens, less than one step of {recipe.batch.tokens}",
                "At least one step was expected",
                "Write more data, or pass a smaller --set batch.tokens=N",
            )
        self.progress, self.saved_step = Progress(), 0

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def go(self) -> Outcome:
        """Train from the newest checkpoint to the end, or until asked to stop."""
        self._restore()
        started = time.monotonic()
        with asked_to_stop() as asked, Display(self.main, self.total, self.progress.step, self.recipe.name) as display:
            if not self.progress.step:
                processes, tokens = self.accelerator.num_processes, self.corpus.answer_tokens
                self._log({"event": "start", "steps": self.total, "processes": processes, "answer_tokens": tokens})
                if self.start is not None:
                    display.measured(self._evaluate())
            for step, batches in self._steps():
                rate = self._set_rate(step)
                before = time.monotonic()
                late = bool(self.options.minutes) and before - started > 60 * self.options.minutes
                sums, counts, norm, stop = self._step(step, batches, asked() or late)
                self.progress.step = step + 1
                self.progress.answer_tokens += int(counts[0])
                self.progress.seconds += time.monotonic() - before
                row = self._row(rate, norm, sums, counts)
                self._log(row)
                display.step(row)
                last = step + 1 == self.total
                if last or (step + 1) % self.recipe.evaluate_every == 0:
                    display.measured(self._evaluate())
                    last = last or self._gains_no_more()
                if last or stop or (step + 1) % self.options.checkpoint_every == 0:
                    self._save()
                if stop or last:
                    break
        finished = self.progress.step == self.total or self._gains_no_more()
        if self.main and self.progress.best:
            self._export()
        self.accelerator.wait_for_everyone()
        return Outcome(finished, self.progress, self.total, self.output, self.recipe.family)

    def _gains_no_more(self) -> bool:
        """Whether as many measurements as the recipe's patience have brought nothing better."""
        patience, since = self.recipe.patience, self.progress.step - self.progress.best_step
        return bool(patience) and since >= patience * self.recipe.evaluate_every

    def _steps(self) -> Iterator[tuple[int, list[MicroBatch]]]:
        """The steps still to do, each with all its micro-batches: a function of the seed alone."""
        if self._gains_no_more():
            return
        for epoch in range(self.progress.step // self.per_epoch, self.recipe.epochs):
            plan = plan_steps(self.corpus.train, self.recipe.batch, self.recipe.seed + epoch)
            for at, groups in enumerate(plan[: self.per_epoch]):
                step = epoch * self.per_epoch + at
                if step >= self.progress.step:
                    rows = [[self.corpus.train[i] for i in group] for group in groups]
                    yield step, [collate(row, self.recipe.batch.length) for row in rows]

    def _step(self, step: int, batches: list[MicroBatch], stop: bool) -> tuple[Tensor, Tensor, float, bool]:
        """One optimiser step; returns sums over all positions, their number, the gradient's norm, and
        whether any process was asked to stop."""
        self.model.train()
        device, count = self.accelerator.device, self.accelerator.num_processes
        number = counted_positions(batches, self.recipe.unroll.steps)
        counts = number.to(device, non_blocking=True)
        mine = range(self.accelerator.process_index, len(batches), count)
        sums = torch.zeros(self.recipe.unroll.steps, 3, device=device)
        for index in mine:
            batch = batches[index].to(device)
            states = self.states(batch.ids[:, :-1])
            waits = contextlib.nullcontext() if index == mine[-1] else self.accelerator.no_sync(self.model)
            with waits:
                noise = (self.recipe.seed * self.total + step) * len(batches) + index
                loss, part = self.model(batch, states, counts, noise)
                self.accelerator.backward(loss * count)  # gradients are averaged over the processes
            sums += part
        size = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip)
        joined = self.accelerator.reduce(torch.cat((sums.flatten(), torch.full_like(sums[0, :1], float(stop)))))
        told = torch.cat((joined, size.reshape(1))).cpu()  # the one time that a step waits for its device
        sums, stopping, norm = told[:-2].view(sums.shape), bool(told[-2]), float(told[-1])
        if not bool(told.isfinite().all()):
            raise HeadError(
                f"the loss of step {step + 1} is {float(sums[:, 0].sum() / number[0]):g}, its gradient {norm:g}",
                f"The weights were left as they are; the last checkpoint is of step {self.saved_step}",
                f"Start anew with a lower learning rate: --set optimiser.learning_rate="
                f"{self.recipe.optimiser.learning_rate / 3:.1g}, in another --output",
            )
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return sums, number, norm, stopping

    def _set_rate(self, step: int) -> float:
        settings = self.recipe.optimiser
        warmup = max(1, round(settings.warmup * self.total))
        cosine = (1 + math.cos(math.pi * step / self.total)) / 2
        rate = settings.learning_rate * min(1.0, (step + 1) / warmup)
        rate *= settings.final + (1 - settings.final) * cosine
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        return rate

    def _row(self, rate: float, norm: float, sums: Tensor, counts: Tensor) -> dict[str, Any]:
        means = sums / counts[:, None].clamp_min(1)
        weights = torch.tensor([self.recipe.unroll.decay**j for j in range(len(means))])
        return {
            "event": "step",
            "step": self.progress.step,
            "loss": float(means[:, 0] @ weights / weights.sum()),
            "loss_per_depth": [round(x, 5) for x in means[:, 0].tolist()],
            "argmax_agreement": [round(x, 4) for x in means[:, 1].tolist()],
            "coverage": round(float(means[0, 2]), 4),
            "learning_rate": float(f"{rate:.4g}"),
            "gradient_norm": float(f"{norm:.4g}"),
            "answer_tokens": self.progress.answer_tokens,
            "seconds": round(self.progress.seconds, 2),
        }

    def _evaluate(self) -> Agreement | None:
        """Acceptance on the held-out conversations; the best weights so far are kept."""
        found = None
        if self.main:
            self.model.eval()
            with self.accelerator.autocast():
                found = measure(
                    self.objective.head,
                    self.teacher,
                    self.corpus.held_out,
                    self.objective.head.config.max_draft_tokens or self.options.draft_tokens,
                    self.recipe.batch.length,
                )
            self._log({"event": "held_out", "step": self.progress.step, **found.as_json()})
            if found.acceptance_length > self.progress.best_acceptance:
                self.progress.best_acceptance = found.acceptance_length
                self.progress.best_step, self.progress.best = self.progress.step, found.as_json()
                weights = {n: t.detach().cpu().contiguous() for n, t in self.objective.head.state_dict().items()}
                with self._disk(), replaced(self.folder.best(self.progress.step)) as partial:
                    save_file(weights, partial)
        # All processes stop by what the first has measured.
        best: list[Any] = [self.progress.best_acceptance, self.progress.best_step, self.progress.best]
        broadcast_object_list(best)
        self.progress.best_acceptance, self.progress.best_step, self.progress.best = best
        return found

    def _save(self) -> None:
        with self._disk():
            partial = self.folder.path / f".step-{self.progress.step:08d}.partial"
            if self.main:
                partial = self.folder.partial(self.progress.step)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if self.main:
                self.folder.commit(partial, self.progress)
        self.saved_step = self.progress.step

    def _restore(self) -> None:
        if self.main:
            self.folder.discard()
        self.accelerator.wait_for_everyone()
        found = self.folder.checkpoints()
        if not found:
            if self.main:
                self.folder.rewind_log(-1)
            return
        try:
            self.accelerator.load_state(str(found[-1]))
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise HeadError(
                f"the checkpoint {found[-1]} cannot be read: {str(error).splitlines()[0]}",
                "A whole checkpoint was expected",
                "Remove it to go on from the one before",
            ) from None
        self.progress = self.folder.read_progress(found[-1])
        self.saved_step = self.progress.step
        if self.main:
            self.folder.rewind_log(self.progress.step)

    def _export(self) -> None:
        """The best weights, in the producer's layout, with their card."""
        head = self.objective.head
        head.load_state_dict(load_file(self.folder.best(self.progress.best_step)))
        with self._disk():
            if self.start is None:
                export_head(self.recipe.family, head, self.output, self.options.tables)
            else:
                export_adapted(self.recipe.family, head, self.target, self.output, self.options.tables)
            write_card(self.output, self.recipe, self.target.name, self.corpus, self.progress, self.options)

    def _log(self, row: dict[str, Any]) -> None:
        if self.main:
            with self._disk():
                self.folder.append(row)

    def _disk(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(
            self.folder.path,
            f"The checkpoint of step {self.saved_step} is whole. Make room and run the same command again to go on"
            if self.saved_step
            else "There is no checkpoint yet. Make room and run the same command again",
        )
