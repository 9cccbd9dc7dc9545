"""The one place in the benchmarks that looks inside a running engine, which must live in this process.

vLLM has no public way to tell drafting from verifying, or to see what was rejected, so methods of the
scheduler, the runner and the two models are wrapped. Nothing they do is changed; a vLLM without them gives no
step times and no traces, and everything else still works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from ..compat import when_imported
from ..errors import HeadError
from .session import Step


class StepClock:
    """Times decode steps of an `LLM` whose engine core is in this process.

    On an accelerator the parts are host time: kernels that run on after a call returned are found in the
    part that waits for them. `total` is right everywhere.
    """

    def __init__(self, llm: Any) -> None:
        self._steps: list[Step] = []
        self._parts: dict[str, float] = {}
        self._scheduled: Any = None
        #: Told of the tokens that each step emitted.
        self.watch: StepWatch | None = None
        try:
            core = llm.llm_engine.engine_core.engine_core
            runner = core.model_executor.driver_worker.worker.model_runner
            parts = {"schedule": (core.scheduler, "schedule"), "book": (core.scheduler, "update_from_output")}
            parts |= {"execute": (runner, "execute_model"), "sample": (runner, "sample_tokens")}
            if llm.llm_engine.vllm_config.speculative_config is not None:
                parts["draft"] = (runner, "propose_draft_token_ids")
            wrapped = {part: getattr(owner, name) for part, (owner, name) in parts.items()}
        except AttributeError:
            self.working = False
            return
        self.working = True
        for part, (owner, name) in parts.items():
            setattr(owner, name, self._timed(part, wrapped[part]))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if part == "execute":
                self._scheduled = args[0] if args else kwargs.get("scheduler_output")
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - started

        return timed

    def step(self, engine: Any) -> list[Any]:
        """`engine.step()`, timed."""
        self._parts, self._scheduled = {}, None
        started = time.perf_counter()
        outputs = engine.step()
        total = time.perf_counter() - started
        if self.working and self._scheduled is not None:
            self._keep(total)
        if self.watch is not None:
            self.watch.emitted(outputs)
        return outputs

    def _keep(self, total: float) -> None:
        scheduled, parts = self._scheduled, self._parts
        tokens, drafts = scheduled.num_scheduled_tokens, scheduled.scheduled_spec_decode_tokens
        # Decoding means one token a request beside its drafts; anything more is (part of) a prompt.
        if not tokens or any(n != 1 + len(drafts.get(name, ())) for name, n in tokens.items()):
            return
        draft = parts.get("draft", 0.0)
        self._steps.append(
            Step(
                requests=len(tokens),
                rows=sum(tokens.values()),
                drafted=bool(drafts),
                total=1e3 * total,
                draft=1e3 * draft,
                verify=1e3 * (parts.get("execute", 0.0) + parts.get("sample", 0.0) - draft),
                scheduling=1e3 * (parts.get("schedule", 0.0) + parts.get("book", 0.0)),
            )
        )

    def take(self) -> list[Step]:
        """The decode steps since the last call."""
        steps, self._steps = self._steps, []
        return steps


@dataclass
class TraceStep:
    """One step of one request.

    Attributes:
        drafts: [d] tokens that the step verified.
        draft_probs: [d] the drafter's probability of each, at temperature 1; empty where it has none (n-grams).
        target_probs: [d] the target's, each given the drafts before it.
        emitted: tokens that came out: accepted drafts, then the target's own.
        own_prob: the target's probability of its own token, at temperature 1; None where the step was trimmed.
    """

    drafts: list[int]
    draft_probs: list[float]
    target_probs: list[float]
    emitted: list[int] = field(default_factory=list)
    own_prob: float | None = None


class StepWatch:
    """Writes down each step of the one request that runs while this context is open.

    Raises:
        HeadError: the runner has not the methods that are looked at.
    """

    def __init__(self, llm: Any) -> None:
        self.steps: list[TraceStep] = []
        self._drafts: tuple[list[int], list[float]] = ([], [])
        self._logits: Any = None
        self._draft_logits: list[Any] = []
        try:
            self._runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
            self._runner.model.compute_logits  # noqa: B018 (asks whether it is there)
            self._runner.propose_draft_token_ids  # noqa: B018
        except AttributeError as error:
            raise HeadError(
                f"this vLLM's runner cannot be watched: {error}", "The V1 model runner was expected"
            ) from None

    def __enter__(self) -> StepWatch:
        runner, self._stack = self._runner, ExitStack()
        self._wrap(runner.model, "compute_logits", self._target)
        if getattr(runner, "drafter", None) is not None:
            self._wrap(runner, "propose_draft_token_ids", self._proposed)
        draft_model: Any = getattr(getattr(runner, "drafter", None), "model", None)
        if callable(getattr(draft_model, "compute_logits", None)):
            self._wrap(draft_model, "compute_logits", lambda logits, hidden: self._draft_logits.append(logits))
            if hasattr(draft_model, "get_top_tokens"):  # a shortcut past the logits: have them computed after all
                self._wrap(draft_model, "get_top_tokens", lambda tokens, hidden: draft_model.compute_logits(hidden))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _wrap(self, owner: Any, name: str, seen: Callable[..., Any]) -> None:
        call = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            seen(result, *args)
            return result

        # Into the instance's own dictionary: torch modules would register nothing else there.
        self._stack.enter_context(mock.patch.dict(vars(owner), {name: wrapped}))

    def _target(self, logits: Any, *args: Any) -> None:
        drafts, probs = self._drafts
        rows = logits.float().softmax(-1)
        seen = min(len(drafts), len(rows) - 1)  # vLLM may verify fewer than were drafted
        self._logits = rows
        target = [float(rows[i, token]) for i, token in enumerate(drafts[:seen])]
        self.steps.append(TraceStep(drafts[:seen], probs[:seen], target))

    def _proposed(self, drafts: Any, *args: Any) -> None:
        rows = drafts.tolist() if hasattr(drafts, "tolist") else drafts
        tokens = [int(token) for token in rows[0]] if rows else []
        probs = []
        if len(self._draft_logits) == len(tokens):
            probs = [
                float(logits[0].float().softmax(-1)[token])
                for logits, token in zip(self._draft_logits, tokens, strict=True)
            ]
        self._drafts, self._draft_logits = (tokens, probs), []

    def emitted(self, outputs: list[Any]) -> None:
        """What the step that was just watched put out."""
        for output in outputs:
            tokens = list(output.outputs[0].token_ids)
            if not tokens or not self.steps:
                continue
            step = self.steps[-1]
            step.emitted = tokens
            own = accepted_drafts(step)
            if own < len(tokens):
                step.own_prob = float(self._logits[own, tokens[own]])


def accepted_drafts(step: TraceStep) -> int:
    """How many of the emitted tokens are accepted drafts."""
    accepted = 0
    for draft, token in zip(step.drafts, step.emitted, strict=False):
        if draft != token:
            break
        accepted += 1
    return accepted


def allow_synthetic_acceptance_on_cpu() -> None:
    """Let `rejection_sample_method: synthetic` run on CPU, where stock vLLM 0.32 stops with an assertion.

    Call it before vLLM is imported. Greedy only, and only for measuring: synthetic answers mean nothing.
    """
    when_imported("vllm.utils.cpu_triton_utils", _hook_greedy_rejection)


def _hook_greedy_rejection(module: Any) -> None:
    stock = module._rejection_greedy_sample_kernel_impl

    def sample(
        output: Any,
        cu_num_draft_tokens: Any,
        draft_token_ids: Any,
        target_argmax: Any,
        bonus_token_ids: Any,
        is_greedy: Any,
        max_spec_len: int,
        uniform_probs: Any = None,
        synthetic_conditional_rates: Any = None,
        SYNTHETIC_MODE: bool = False,
    ) -> None:
        if SYNTHETIC_MODE:
            target_argmax = synthetic_targets(
                cu_num_draft_tokens, draft_token_ids, target_argmax, uniform_probs, synthetic_conditional_rates
            )
        stock(output, cu_num_draft_tokens, draft_token_ids, target_argmax, bonus_token_ids, is_greedy, max_spec_len)

    module._rejection_greedy_sample_kernel_impl = sample


def synthetic_targets(cu_num_draft_tokens: Any, drafts: Any, targets: Any, uniform: Any, rates: Any) -> Any:
    """Target tokens [N] that agree with the drafts [N] exactly where synthetic acceptance says so.

    A draft at position i of its request is accepted if its `uniform` number is below `rates[i]`, as in vLLM's
    `rejection_greedy_sample_kernel`; elsewhere the target's token, or another one where that is the draft.
    """
    import torch

    starts = torch.cat((cu_num_draft_tokens.new_zeros(1), cu_num_draft_tokens[:-1]))
    counts = cu_num_draft_tokens - starts
    positions = torch.arange(len(drafts), device=drafts.device) - starts.repeat_interleave(counts.long())
    accepted = (uniform < rates[positions]) & (drafts >= 0)
    drafts = drafts.to(targets.dtype)
    other = torch.where(targets == drafts, torch.where(drafts > 0, drafts - 1, drafts + 1), targets)
    return torch.where(accepted, drafts, other)
