"""What `--additional-config '{"eagle": {...}}'` says: one validated object. Free of vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import UsageError
from . import SECTION, section

#: Children of a node that are considered where nobody says how many. Sampled at a temperature, a target often says
#: what the head ranks behind the fourth.
CONSIDERED = 16
#: Most drafted nodes of a tree: a node's ancestors are the bits of one int64.
MOST_NODES = 63


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TreeConfig(_Section):
    """How trees are grown; `num_speculative_tokens` is the most nodes one may have."""

    #: static: every node of a level gets the same number of children; dynamic: EAGLE-2's beams and rerank
    #: (arXiv 2406.16858); auto: dynamic, with depth and nodes chosen each step by expected tokens per millisecond.
    kind: Literal["static", "dynamic", "auto"] = "auto"
    #: Children of the root (static), beams of a level and children of each (dynamic, auto). Left out: as many beams
    #: as fit, at most 4, and as many children as are among the best nodes.
    top_k: int | None = Field(None, ge=1, le=64)
    #: Levels below the root.
    depth: int | None = Field(None, ge=1, le=32)
    #: static: the children of a node of each level; by default top_k, then half as many at each level.
    branches: tuple[int, ...] | None = Field(None, min_length=1, max_length=32)

    #: Whether requests above temperature 0 draft with the noise that they are sampled with.
    coupled: bool = True

    @model_validator(mode="after")
    def _fits(self) -> TreeConfig:
        if self.branches is not None:
            if self.kind != "static":
                raise ValueError(f'branches are of static trees, kind is "{self.kind}"')
            if self.top_k is not None or self.depth is not None:
                raise ValueError("branches already say top_k and depth")
            if min(self.branches) < 1:
                raise ValueError(f"branches are {list(self.branches)}, at least one child a level was expected")
        return self


@dataclass(frozen=True)
class Shape:
    """A tree config made definite for a number of nodes."""

    kind: Literal["chain", "static", "dynamic", "auto"]
    nodes: int
    depth: int
    #: Beams of a level and children of each; static: the most beams of any level.
    top_k: int
    #: static: children of a node of each level, root first.
    branches: tuple[int, ...] = ()
    #: dynamic, auto: how many children of a node are considered, if more than top_k. Beams cost a row of the head
    #: each; a child more costs nothing until it is drafted.
    considered: int = 0
    #: Whether requests above temperature 0 draft with the noise that they are sampled with.
    coupled: bool = True

    @classmethod
    def chain(cls, nodes: int) -> Shape:
        return cls("chain", nodes, nodes, 1)

    @classmethod
    def of(cls, tree: TreeConfig, nodes: int) -> Shape:
        """Raises UsageError where what was asked for does not fit into `nodes`."""
        if tree.kind == "static":
            branches = tree.branches or tuple(
                max(1, (tree.top_k or 4) >> i) for i in range(tree.depth or min(4, nodes))
            )
            return cls("static", nodes, _fitting(len(branches), nodes), nodes, branches, coupled=tree.coupled)
        depth = _fitting(tree.depth or min(5, nodes), nodes)
        most = nodes // (depth - 1) if depth > 1 else nodes
        if tree.top_k is not None and tree.top_k > most:
            # Each level but the last leaves its beams' keys in slots that vLLM grants: one a node.
            raise UsageError(
                f"top_k {tree.top_k} and depth {depth} with num_speculative_tokens {nodes}",
                f"top_k * (depth - 1) was expected to be at most num_speculative_tokens, so top_k at most {most}",
                example(tree.top_k * (depth - 1)),
            )
        if tree.top_k is not None:
            return cls(tree.kind, nodes, depth, tree.top_k, coupled=tree.coupled)
        considered = min(nodes, CONSIDERED)
        return cls(tree.kind, nodes, depth, max(1, min(4, most)), considered=considered, coupled=tree.coupled)


def _fitting(depth: int, nodes: int) -> int:
    if depth > nodes:
        raise UsageError(
            f"a tree of {depth} levels with num_speculative_tokens {nodes}",
            "At least one node a level was expected",
            example(4 * depth),
        )
    return depth


class AdaptiveConfig(_Section):
    """How the number of drafts follows what is accepted: what gives the most expected tokens per millisecond."""

    #: Fewest drafts of a request (0: it may stop drafting) and most (of a tree: levels); by default the whole shape.
    minimum: int = Field(0, ge=0)
    maximum: int | None = Field(None, ge=1)
    #: Steps between two that try what is not expected to pay.
    probe_every: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> AdaptiveConfig:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum is {self.maximum}, at least minimum {self.minimum} was expected")
        return self


class DraftingConfig(_Section):
    """The `eagle` section of the additional config."""

    tree: TreeConfig | None = None
    adaptive: AdaptiveConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        """`"tree": "auto"` for `{"kind": "auto"}`, `"adaptive": true` for the defaults."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if isinstance(given.get("tree"), str):
            given["tree"] = {"kind": given["tree"]}
        tree = given.get("tree")
        # A tree that sizes itself must be able to stop and to try again.
        itself = isinstance(tree, dict) and tree.get("kind", "auto") == "auto"
        if isinstance(given.setdefault("adaptive", itself), bool):
            given["adaptive"] = {} if given["adaptive"] else None
        return given


@dataclass(frozen=True)
class Drafting:
    """What is drafted each step, and what controls how much of it."""

    shape: Shape
    adaptive: AdaptiveConfig | None


def parse_drafting(additional_config: Any, nodes: int) -> Drafting | None:
    """The drafting that an additional config asks for, or None if it says nothing of it.

    `nodes` is `num_speculative_tokens`.

    Raises:
        UsageError: an unknown key, a value out of range, or one that contradicts `nodes`.
    """
    given = section(additional_config)
    if given is None:
        return None
    try:
        asked = DraftingConfig.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or SECTION}: {e['msg']}" for e in error.errors())
        raise UsageError(
            f"additional config, {SECTION}: {found}", "A whole command that works", example(nodes)
        ) from None
    if asked.tree is None and asked.adaptive is None:
        return None
    if nodes > MOST_NODES:
        raise UsageError(
            f"draft trees or adaptive length with num_speculative_tokens {nodes}",
            f"At most {MOST_NODES} was expected",
            example(MOST_NODES),
        )
    if asked.adaptive is not None and max(asked.adaptive.minimum, asked.adaptive.maximum or 0) > nodes:
        raise UsageError(
            f"adaptive lengths up to {asked.adaptive.maximum or asked.adaptive.minimum} with "
            f"num_speculative_tokens {nodes}",
            "At most num_speculative_tokens was expected",
            example(max(asked.adaptive.minimum, asked.adaptive.maximum or 0)),
        )
    return Drafting(Shape.of(asked.tree, nodes) if asked.tree else Shape.chain(nodes), asked.adaptive)


def example(nodes: int, eagle: str = '{"tree": "auto"}') -> str:
    """The full command that switches trees on, on a line of its own."""
    return (
        f'\n    vllm serve TARGET --speculative-config \'{{"model": "HEAD", "num_speculative_tokens": {nodes}}}\' '
        f"--additional-config '{{\"{SECTION}\": {eagle}}}'\n"
    )
