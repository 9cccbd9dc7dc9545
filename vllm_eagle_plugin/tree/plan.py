"""How much each request drafts in a step: what its sampling parameters allow, and what pays. Free of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .budget import Budget, Size, StepTimes
from .config import Drafting, Shape
from .grow import extent
from .metrics import Metrics


class Allowance(NamedTuple):
    """The drafts that a request's next step may verify, and why these are fewer than asked for."""

    #: Most levels; None: any.
    levels: int | None = None
    #: Only a chain: one draft for each position.
    chain: bool = False
    reason: str = ""


FREE, NONE = Allowance(), Allowance(levels=0)
NOTHING = Size(0, 0)


def allowance(params: Any, emitted: int) -> Allowance:
    """What a request with vLLM's `SamplingParams` (None: it samples nothing) may draft, having emitted so many tokens."""
    if params is None:
        return FREE
    if params.structured_outputs is not None:
        # vLLM advances the grammar along the drafts as one sequence.
        return Allowance(chain=True, reason="structured output")
    if getattr(params, "thinking_token_budget", None) is not None:
        return Allowance(levels=0, reason="thinking budget")
    # Stop tokens are masked for whole steps: within one, all samples or none must be before min_tokens.
    if emitted < params.min_tokens:
        return Allowance(levels=params.min_tokens - 1 - emitted, reason="min_tokens")
    return FREE


def draws_plainly(params: Any) -> bool:
    """Whether nothing touches this request's logits before its argmax, and nothing else is asked of them."""
    return not (
        params.logprobs is not None
        or params.min_tokens
        or params.logit_bias
        or params.allowed_token_ids
        or params.bad_words
        or params.structured_outputs is not None
        or getattr(params, "thinking_token_budget", None) is not None
        or getattr(params, "logprob_token_ids", None)
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
    )


def sizes(shape: Shape) -> list[Size]:
    """What a request may be given of a shape, by nodes, then levels. Of an auto tree: node counts that double, on more
    or fewer levels; of others the tree cut after each of its levels."""
    nodes, widths = extent(shape)
    if shape.kind == "auto":
        counts = [n for n in (1, 2, 4, 8, 16, 32) if n < shape.nodes] + [shape.nodes]
        pairs = {(n, min(n, levels, shape.depth)) for n in counts for levels in (2, 3, 5, shape.depth)}
        return sorted(Size(n, levels, 1 if n == levels else shape.top_k) for n, levels in pairs)
    cut = {
        nodes[level]: Size(nodes[level], level, max(widths[: level - 1], default=1)) for level in range(1, len(nodes))
    }
    return list(cut.values())


@dataclass(frozen=True)
class Plan:
    """What a step's requests may draft."""

    #: [B] most nodes and levels of each, and whether it may draft only a chain.
    sizes: list[Size]
    chains: list[bool]

    @property
    def largest(self) -> Size:
        """The size that takes the longest to draft; without levels: nothing is to be drafted."""
        return max(self.sizes, key=lambda size: (size.levels, size.beams), default=NOTHING)


class Planner:
    """Plans each step's drafts, and learns from what became of them."""

    def __init__(self, drafting: Drafting) -> None:
        self.drafting, self.shape = drafting, drafting.shape
        self.metrics = Metrics()
        self._counted: dict[str, set[str]] = {}
        #: The size that each request was given last, by its number.
        self._given: dict[str, int] = {}
        self._chain_reason = ""
        #: Until times are measured: drafting takes none.
        self.use(StepTimes({1: 1.0}, {1: 0.0}))

    def use(self, times: StepTimes) -> None:
        """Decide by these times from now on."""
        self.times, offered, asked = times, sizes(self.shape), self.drafting.adaptive
        if asked is not None and asked.maximum is not None:
            offered = [size for size in offered if size.levels <= asked.maximum]
        self.sizes = [NOTHING, *offered]
        self.budget = None if asked is None else Budget(offered, times, asked.minimum, asked.probe_every)

    def fall_back(self, reason: str) -> None:
        """Draft chains from now on: trees cannot be had."""
        self._chain_reason = reason
        self.shape = Shape.chain(min(self.shape.depth, self.shape.nodes))
        self.use(self.times)

    def plan(self, requests: Sequence[str], allowed: Sequence[Allowance]) -> Plan:
        """What requests may draft, each as it is allowed to."""
        for request, each in zip(requests, allowed, strict=True):
            self._count(request, each.reason or ("" if each is NONE else self._chain_reason))
        self._given.update(dict.fromkeys(requests, len(self.sizes) - 1))
        if self.budget is not None:
            drafting = [r for r, a in zip(requests, allowed, strict=True) if a.levels != 0]
            self._given.update(zip(drafting, self.budget.each(drafting) if drafting else (), strict=True))
        given = [self.sizes[self._given[request]] for request in requests]
        return Plan(
            [
                g if a.levels is None else g._replace(levels=min(g.levels, a.levels))
                for g, a in zip(given, allowed, strict=True)
            ],
            [a.chain for a in allowed],
        )

    def drafted(self, plan: Plan, milliseconds: float) -> None:
        """Learn that drafting by a plan took so long."""
        self.times.observe_drafting(len(plan.sizes), plan.largest, milliseconds)

    def verified(self, request: str, nodes: int, depth: int, accepted: int) -> None:
        """Learn that of a request's tree of so many nodes (0: none) and levels so many tokens were accepted."""
        if nodes == 0:
            return
        self.metrics.verified(nodes, depth, accepted)
        if self.budget is not None:
            self.budget.observe(request, self._given.get(request, 0), accepted)

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._counted.pop(request, None)
        self._given.pop(request, None)
        if self.budget is not None:
            self.budget.forget(request)

    def report(self) -> dict[str, Any]:
        """Counters since the start and, with a budget, what it chose and decides by."""
        return {
            **self.metrics.report(),
            "shape": vars(self.shape),
            "budget": self.budget.report() if self.budget is not None else None,
        }

    def _count(self, request: str, reason: str) -> None:
        if reason and reason not in self._counted.setdefault(request, set()):
            self._counted[request].add(reason)
            self.metrics.fell_back(reason)
