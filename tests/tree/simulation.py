"""Requests whose acceptance is hidden from who drafts for them, and machines whose steps take time.

Nothing here decides: `run` asks a policy before each step what to draft, draws what a target would accept, and counts
tokens and simulated milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(x: Array | float) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x))))


@dataclass(frozen=True)
class World:
    """How likely drafts are accepted. Probabilities are log-odds here."""

    #: (request, position) to that of the head's first choice at the root.
    ability: Callable[[int, int], float]
    #: What each level more costs, and how far nodes scatter.
    fade: float = 0.2
    scatter: float = 1.0
    #: Share of the rest that the second choice has, and each choice after it of the one before.
    second: float = 0.35
    ratio: float = 0.6
    #: Of the head's word: what it is off by, how far it is blurred, how much it knows of a node's own odds.
    boast: float = 0.5
    blur: float = 0.7
    insight: float = 0.8


class Grown(NamedTuple):
    """The candidates of a batch, best first: probability that the head gives their paths, their depths, and whether
    they are what the target says; all [B, C]."""

    reach: Array
    depths: NDArray[np.int64]
    hits: NDArray[np.bool_]


def grow(world: World, rng: np.random.Generator, ability: Array, levels: int, beams: int, children: int) -> Grown:
    batch = len(ability)
    if children == 1:
        return _chains(world, rng, ability, levels)
    shares = world.second * world.ratio ** np.arange(children - 1)
    reach, on_path = np.ones((batch, 1)), np.ones((batch, 1), dtype=bool)
    found: list[tuple[Array, NDArray[np.bool_]]] = []
    for depth in range(levels):
        mean = ability[:, None] - world.fade * depth
        odds = mean + world.scatter * rng.standard_normal(reach.shape)
        first = sigmoid(odds)
        known = mean + world.insight * (odds - mean) + world.boast + world.blur * rng.standard_normal(reach.shape)
        claim = sigmoid(known)
        outcome = np.zeros_like(first, dtype=np.int64)
        left, u = first, rng.random(first.shape)
        for share in shares:
            outcome += u >= left
            left = left + (1 - first) * share
        outcome += u >= left
        hit = (np.arange(children) == outcome[..., None]) & on_path[..., None]
        claims = np.concatenate([claim[..., None], (1 - claim)[..., None] * shares], -1)
        level = (reach[..., None] * claims).reshape(batch, -1)
        found.append((level, hit.reshape(batch, -1)))
        picked = np.argsort(-level, axis=1, kind="stable")[:, :beams]
        rows = np.arange(batch)[:, None]
        reach, on_path = level[rows, picked], found[-1][1][rows, picked]
    all_reach, all_hits = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    depths = np.concatenate([np.full(level.shape[1], d) for d, (level, _) in enumerate(found, 1)])
    order = np.argsort(-all_reach, axis=1, kind="stable")
    rows = np.arange(batch)[:, None]
    return Grown(all_reach[rows, order], depths[order], all_hits[rows, order])


def _chains(world: World, rng: np.random.Generator, ability: Array, levels: int) -> Grown:
    """The same of one child a node, for all levels at once."""
    mean = ability[:, None] - world.fade * np.arange(levels)
    deviation, blur = world.scatter * rng.standard_normal(mean.shape), world.blur * rng.standard_normal(mean.shape)
    claims = sigmoid(mean + world.insight * deviation + world.boast + blur)
    hits = np.logical_and.accumulate(rng.random(mean.shape) < sigmoid(mean + deviation), 1)
    return Grown(claims.cumprod(1), np.broadcast_to(np.arange(1, levels + 1), mean.shape), hits)


@dataclass(frozen=True)
class Machine:
    """Milliseconds by rows: a step around `rows` verified ones; the head's pass over a level's rows."""

    verify: Mapping[int, float]
    level: Mapping[int, float]
    #: How far steps scatter, and how far the machine's speed wanders each step.
    noise: float = 0.03
    wander: float = 0.004
    #: From halfway, steps take so many times as long.
    slower: float = 1.0
    #: What start-up says of `verify`, by rows, in times what it is.
    wrong: Mapping[int, float] = field(default_factory=dict)

    def step(self, rows: int) -> float:
        return _line(self.verify, rows)

    def head(self, rows: int) -> float:
        return _line(self.level, rows)

    def measured(self) -> dict[int, float]:
        """What start-up says of `verify`."""
        return {n: ms * self.wrong.get(n, 1.0) for n, ms in self.verify.items()}


def _line(points: Mapping[int, float], at: int) -> float:
    return float(np.interp(at, list(points), list(points.values())))


class Policy(Protocol):
    """What decides in a simulation."""

    def plan(self, requests: Sequence[str]) -> tuple[Sequence[int], Sequence[int]]:
        """Nodes and levels of each request for the next step."""

    def cut(self, grown: Grown, nodes: Sequence[int], levels: Sequence[int], drafting: float) -> Sequence[int]:
        """Nodes of each request, now that they are grown."""

    def observe(self, request: str, nodes: int, levels: int, accepted: int) -> None: ...

    def observe_step(self, batch: int, rows: int, levels: int, verifying: float, drafting: float) -> None: ...

    def forget(self, request: str) -> None: ...


class Fixed:
    """As many nodes and levels in every step."""

    def __init__(self, nodes: int, levels: int):
        self.nodes, self.levels = nodes, levels

    def plan(self, requests: Sequence[str]) -> tuple[Sequence[int], Sequence[int]]:
        return [self.nodes] * len(requests), [self.levels] * len(requests)

    def cut(self, grown: Grown, nodes: Sequence[int], levels: Sequence[int], drafting: float) -> Sequence[int]:
        return nodes

    def observe(self, *seen: object) -> None:
        pass

    observe_step = forget = observe


def run(
    policy: Policy,
    world: World,
    machine: Machine,
    batch: int,
    requests: int,
    tokens: int = 256,
    beams: int = 1,
    children: int = 1,
    seed: int = 0,
) -> float:
    """Tokens per simulated millisecond of `requests` requests of `tokens` tokens, `batch` at a time."""
    rng, clock = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    running: dict[int, int] = {}
    waiting = iter(range(requests))
    ms, emitted, pace, half = 0.0, 0, 1.0, requests * tokens / 2
    while True:
        while len(running) < batch and (new := next(waiting, None)) is not None:
            running[new] = 0
        if len(running) < batch:
            return emitted / ms
        names = [str(r) for r in running]
        nodes, levels = policy.plan(names)
        nodes = [n if depth else 0 for n, depth in zip(nodes, levels, strict=True)]
        deepest = max((d for n, d in zip(nodes, levels, strict=True) if n), default=0)
        accepted, drafting = [0] * batch, 0.0
        pace += machine.wander * clock.standard_normal() - 0.02 * (pace - 1)
        slow = pace * (machine.slower if emitted > half else 1.0) * np.exp(machine.noise * clock.standard_normal())
        if deepest:
            ability = np.array([world.ability(r, at) for r, at in running.items()])
            drafting = slow * (machine.head(batch) + (deepest - 1) * machine.head(batch * beams))
            grown = grow(world, rng, ability, deepest, beams, children)
            allowed = grown.depths <= np.array(levels)[:, None]
            # Those of the levels that a request may have stand in front.
            order = np.argsort(~allowed, axis=1, kind="stable")
            at = np.arange(batch)[:, None]
            reach = np.where(allowed, grown.reach, 0.0)[at, order]
            grown = Grown(reach, grown.depths[at, order], (grown.hits & allowed)[at, order])
            nodes = [min(n, int(a)) for n, a in zip(nodes, allowed.sum(1), strict=True)]
            nodes = list(policy.cut(grown, nodes, levels, drafting))
            accepted = [int(grown.hits[b, : nodes[b]].sum()) for b in range(batch)]
        rows = batch + sum(nodes)
        verifying = slow * machine.step(rows)
        ms += verifying + drafting
        policy.observe_step(batch, rows, deepest, verifying, drafting)
        for index, (request, name) in enumerate(zip(list(running), names, strict=True)):
            policy.observe(name, nodes[index], levels[index], accepted[index])
            emitted += accepted[index] + 1
            running[request] += accepted[index] + 1
            if running[request] >= tokens:
                del running[request]
                policy.forget(name)


#: A few cores, where every row costs; a few others, where kernels work in blocks of rows; and GPUs, where rows are free
#: until there are hundreds.
STEEP = Machine(
    {1: 40, 2: 42, 4: 45, 8: 53, 16: 72, 32: 110, 64: 190, 128: 360, 256: 700, 1024: 2800},
    {1: 4, 8: 6, 32: 14, 128: 50},
)
BLOCKS = Machine(
    {1: 38, 2: 39.5, 3: 36.5, 6: 37, 7: 39, 8: 40, 16: 52, 32: 84, 64: 150, 256: 560, 1024: 2240},
    {1: 2, 8: 3, 32: 8, 128: 30},
)
FLAT = Machine(
    {1: 8, 16: 8.1, 64: 8.4, 128: 9, 256: 12, 512: 19, 1024: 36}, {1: 0.4, 32: 0.42, 128: 0.5, 512: 0.9}, noise=0.01
)
MACHINES = {
    "steep": STEEP,
    "blocks": BLOCKS,
    "flat": FLAT,
    "noisy": Machine(STEEP.verify, STEEP.level, noise=0.1, wander=0.02),
    "slowing": Machine(BLOCKS.verify, BLOCKS.level, slower=1.2),
    "one row said dear": Machine(STEEP.verify, STEEP.level, wrong={1: 1.25}),
    "more rows said dear": Machine(STEEP.verify, STEEP.level, wrong=dict.fromkeys([2, 4, 8, 16, 32], 1.25)),
}


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def steady(p: float, **more: float) -> World:
    return World(lambda request, position: logit(p), **more)


WORLDS = {
    "easy": steady(0.88),
    "middling": steady(0.65),
    "hard": steady(0.3),
    "worthless": World(lambda r, p: -5.0, fade=0, second=0.02, boast=5.0, blur=1.5, insight=0),
    "drifting": World(lambda r, p: 1.0 + 1.5 * np.sin(p / 60 + r)),
    "topics": World(lambda r, p: logit(0.88) if p // 128 % 2 else logit(0.15)),
    "mixed": World(lambda r, p: logit(0.88) if r % 3 else logit(0.12)),
    "T=1": steady(0.4, second=0.25, ratio=0.85, scatter=1.3),
}
