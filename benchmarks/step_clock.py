"""Where the time of an engine's steps goes. Methods are timed as they are called; nothing that they do is changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..compat.running import step_parts
from .session import Step
from .step_watch import StepWatch


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
            parts = step_parts(llm)
        except AttributeError:
            self.working = False
            return
        self.working = True
        for part, (owner, name) in parts.items():
            setattr(owner, name, self._timed(part, getattr(owner, name)))

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
