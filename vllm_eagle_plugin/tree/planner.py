"""How much to draft: what requests allow, and what pays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..adaptive import Controller, controller
from .calibration import Calibration
from .choose import Chooser, Limits
from .config import Drafting, Shape
from .cost import Curve
from .cost_model import CostModel
from .metrics import Metrics
from .old_grow import Drawn, Growth, Scorer, extent, select
from .requests import FREE, NONE, Allowance, allowance
from .tree import Tree

#: Until costs are measured: drafting is free, as in a plan that counts drafts alone.
_UNMEASURED = CostModel({1: 1.0}, {1: 0.0}, {1: 0.0})


@dataclass(frozen=True)
class Plan(Limits):
    """What each request of a step may draft."""

    @property
    def depth(self) -> int:
        """Most levels of any request; 0: nothing is to be drafted."""
        return max(self.levels, default=0)


@dataclass
class _Request:
    """What the planner keeps of a request."""

    drawn: Drawn | None = None
    #: Reasons that its drafts were fewer than asked for, each counted once.
    reasons: set[str] = field(default_factory=set)


class Planner:
    """Plans each step's drafts, and learns from what became of them."""

    def __init__(self, drafting: Drafting) -> None:
        self.drafting, self.shape = drafting, drafting.shape
        self.metrics = Metrics()
        self._requests: dict[str, _Request] = {}
        self._chain_reason = ""
        self.use(_UNMEASURED)

    def use(self, costs: CostModel) -> None:
        """Decide by these costs from now on."""
        self.costs = costs
        #: Most nodes of a tree by its levels; those that size themselves may have them all at any.
        self._sizes = extent(self.shape)[0]
        if self.shape.kind == "auto":
            self._sizes[1:] = [self.shape.nodes] * self.shape.depth
        self.chooser = Chooser(costs) if self.shape.kind == "auto" else None
        self.calibration = Calibration(self.shape.depth)
        adaptive = self.drafting.adaptive
        self.controller: Controller | None = controller(adaptive, self.shape, costs) if adaptive else None

    def fall_back(self, reason: str) -> None:
        """Draft chains from now on: trees cannot be had."""
        self._chain_reason = reason
        self.shape = Shape.chain(min(self.shape.depth, self.shape.nodes))
        self.use(self.costs)

    def plan(self, runner: Any) -> Plan:
        """What the requests of the runner's batch may draft."""
        requests = runner.input_batch.req_ids
        allowed = []
        for index, request in enumerate(requests):
            if runner.discard_request_mask.np[index]:
                allowed.append(NONE)  # still reading its prompt
                continue
            allowed.append(self._allowed(runner.requests[request], runner.sampled[index]))
            self._count(request, allowed[-1].reason or self._chain_reason)
        levels = [self.shape.depth if a.levels is None else min(self.shape.depth, a.levels) for a in allowed]
        trials: list[int] = []
        if self.controller:
            asked = [index for index, level in enumerate(levels) if level]
            drafting = [requests[index] for index in asked]
            for index, limit in zip(asked, self.controller.limits(drafting), strict=True):
                levels[index] = min(levels[index], limit)
            tried = dict(zip(asked, self.controller.trials(drafting), strict=True))
            trials = [level if tried.get(index) else 0 for index, level in enumerate(levels)]
        nodes = [self._sizes[level] for level in levels]
        return Plan(nodes, levels, [a.chain for a in allowed], trials if any(trials) else ())

    def scorer(self, requests: list[str]) -> Scorer | None:
        """What candidates are ranked by, beyond the head's own word."""
        return self.calibration.scorer(requests) if self.chooser else None

    def goes_on(self, growth: Growth, plan: Plan) -> bool:
        """Whether to draft another level."""
        if growth.depth < max(plan.trials, default=0):
            return True
        return self.chooser.goes_on(growth, plan) if self.chooser else True

    def choose(self, growth: Growth, plan: Plan, requests: list[str]) -> list[Tree]:
        """The tree of each request."""
        budgets, chains = plan.nodes, plan.chains
        if self.chooser:
            chosen = self.chooser.budgets(growth, plan)
            budgets, chains = chosen.nodes, [chosen.chains or chain for chain in plan.chains]
        # Where nodes are chosen by what they are worth, the head's chain has to earn its place too.
        drawn = select(growth.candidates(), budgets, plan.levels, chains, keep_chain=self.chooser is None)
        for request, each in zip(requests, drawn, strict=True):
            self._requests.setdefault(request, _Request()).drawn = each
        return [each.tree for each in drawn]

    def verified(self, request: str, tree: Tree | None, path: list[int]) -> None:
        """Learn that the nodes in `path` of a request's tree (None: nothing was drafted) were accepted."""
        depth = int(tree.depths.max()) if tree is not None else 0
        if self.controller:
            self.controller.observe(request, depth, len(path), len(path) + 1)
        if tree is None:
            return
        self.metrics.verified(len(tree), depth, len(path))
        known = self._requests.get(request)
        drawn = known.drawn if known is not None else None
        # It may be another: vLLM puts its own drafts where ours did not fit.
        if self.chooser and drawn is not None and len(drawn.tree) >= len(tree) and drawn.tree.first(len(tree)) == tree:
            self.calibration.observe(drawn.claims[: len(tree)], tree, path, request)

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._requests.pop(request, None)
        self.calibration.forget(request)
        if self.controller:
            self.controller.forget(request)

    def report(self) -> dict[str, Any]:
        """Counters since the start, the costs decided by and, with a controller, the lengths it chose."""
        curves = {name: curve for name, curve in vars(self.costs).items() if isinstance(curve, Curve)}
        return {
            **self.metrics.report(),
            "shape": vars(self.shape),
            "costs": {
                **{name: [curve.rows.tolist(), curve(curve.rows).tolist()] for name, curve in curves.items()},
                "branch": self.costs.branch,
            },
            "controller": self.controller.state() if self.controller else None,
        }

    def _allowed(self, state: Any, sampled: int) -> Allowance:
        if state.sampling_params is None:
            return FREE
        # What this step sampled is not in the request's list yet.
        return allowance(state.sampling_params, len(state.output_token_ids) + sampled)

    def _count(self, request: str, reason: str) -> None:
        if not reason:
            return
        reasons = self._requests.setdefault(request, _Request()).reasons
        if reason not in reasons:
            reasons.add(reason)
            self.metrics.fell_back(reason)
