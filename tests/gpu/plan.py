"""The cases, most important first: what must be right, several engines side by side; then speeds, alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

#: Known-answer heads by the name of their folder, and the targets that they draft for.
KNOWN = {
    "feature": "known",
    "feature-same-pairing": "known",
    "surgery": "known",
    "projection": "known",
    "eagle": "known",
    "eagle-fc-bias": "known",
    "eagle3": "known",
    "eagle3-reduced": "known-subset",
    "eagle3-no-aux": "known",
}
SHIPPED = ("eagle3", "feature", "eagle1", "projection", "surgery")
#: Drafts of a known-answer head: all are accepted.
K = 4
#: Nodes of a tree, and requests at a time that speeds are measured at.
NODES, BATCHES = 16, (1, 8, 64)
TREE = {"kind": "dynamic", "depth": 3}
#: Acceptance lengths that vLLM's synthetic acceptance is set to, for a target of the 8B shape.
STATED = (2.0, 3.0)
#: A head without provenance does not say what it is.
EAGLE3 = {"method": "eagle3"}


@dataclass(frozen=True)
class Case:
    """One engine and what it is asked. Folders are relative to the prepared one."""

    name: str
    target: str
    kind: Literal["tokens", "draws", "speed", "convert"] = "tokens"
    head: str | None = None
    k: int = K
    runner: Literal["v1", "v2"] = "v2"
    graphs: bool = False
    dtype: str = "bfloat16"
    tree: Any = None
    temperature: float = 0.0
    requests: int = 24
    tokens: int = 96
    #: Requests at a time; 0: all.
    batch: int = 0
    #: Acceptance length that it must have, exactly.
    expect: float | None = None
    #: Case whose tokens these must be; in bf16 but for nearly tied ones.
    same_as: str | None = None
    speculative: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def correctness() -> Iterator[Case]:
    """Engines of a few hundred MB each."""
    for runner in ("v2", "v1"):
        for target in ("known", "known-subset"):
            yield Case(f"{runner} {target} plain", target, runner=runner, dtype="float32")
        for head, target in KNOWN.items():
            yield _known(f"{runner} {head}", head, target, runner=runner)
        for head in ("eagle3", "feature"):
            yield _known(f"{runner} {head}, tree", head, "known", runner=runner, k=NODES, tree=TREE, expect=4.0)
    for head in ("feature", "eagle", "eagle3"):
        yield _known(f"v2 {head}, graphs", head, KNOWN[head], graphs=True)
        yield _known(f"v2 {head}, tree, graphs", head, "known", k=NODES, tree=TREE, graphs=True, expect=4.0)
    for dtype in ("float32", "bfloat16"):
        plain = Case(f"v2 demo plain, {dtype}", "demo", dtype=dtype)
        yield plain
        for head in SHIPPED:
            yield Case(f"v2 demo {head}, {dtype}", "demo", head=head, k=3, dtype=dtype, same_as=plain.name)
        for head in ("eagle3", "feature"):
            yield Case(
                f"v2 demo {head}, tree, {dtype}", "demo", head=head, k=NODES, tree=TREE, dtype=dtype, same_as=plain.name
            )
    yield Case("convert, verified in vLLM", "demo", kind="convert", head="eagle3")
    for name, more in (("plain", {}), ("chain", {"head": "eagle"}), ("tree", {"head": "eagle", "tree": TREE})):
        nodes = NODES if name == "tree" else K
        yield Case(
            f"v2 draws, {name}", "markov", kind="draws", temperature=1.0, requests=8000, tokens=3, dtype="float32",
            k=nodes, **({**more, "head": "markov-eagle"} if more else {}),
        )  # fmt: skip


def _known(name: str, head: str, target: str, expect: float = K + 1.0, **more: Any) -> Case:
    runner = more.get("runner", "v2")
    plain = f"{runner} {target} plain"
    return Case(name, target, head=f"known-{head}", dtype="float32", expect=expect, same_as=plain, **more)


def speeds() -> Iterator[Case]:
    """One engine at a time. Graph sizes are multiples of the rows of a request's step: others are not replayed."""
    for batch in BATCHES:
        yield _speed(f"plain at {batch}", batch, 1)
        for head, k in (("eagle3", 2), ("eagle3", 3), ("feature", 2)):
            yield _speed(f"{head}, chain of {k}, at {batch}", batch, k + 1, head=head, k=k)
        yield _speed(f"eagle3, tree of {NODES}, at {batch}", batch, NODES + 1, head="eagle3", k=NODES, tree=TREE)
        yield _speed(f"eagle3, tree auto, at {batch}", batch, NODES + 1, head="eagle3", k=NODES, tree="auto")
    for batch in (1, 8):
        yield _large(f"8B shape, plain at {batch}", batch, 1)
        for length in STATED:
            stated = {**EAGLE3, "rejection_sample_method": "synthetic", "synthetic_acceptance_length": length}
            name = f"8B shape, chain of 3 at length {length:g}, at {batch}"
            yield _large(name, batch, 4, head="large-eagle3", k=3, speculative=stated)
        yield _large(
            f"8B shape, tree of {NODES}, at {batch}",
            batch,
            NODES + 1,
            head="large-eagle3",
            k=NODES,
            tree=TREE,
            speculative=EAGLE3,
        )


def _speed(name: str, batch: int, rows: int, **more: Any) -> Case:
    return Case(
        name, "demo", kind="speed", graphs=True, batch=batch, requests=max(24, batch), tokens=160,
        engine=_graph_sizes(rows, batch), **more,
    )  # fmt: skip


def _large(name: str, batch: int, rows: int, **more: Any) -> Case:
    engine = {"load_format": "dummy", "skip_tokenizer_init": True, **_graph_sizes(rows, batch)}
    return Case(
        name, "large", kind="speed", graphs=True, batch=batch, requests=max(8, batch), tokens=128, engine=engine, **more
    )


def _graph_sizes(rows: int, batch: int) -> dict[str, Any]:
    sizes = sorted({rows * n for n in (1, 2, 4, 8, 16, 32, 64) if n <= batch} | {rows * batch})
    return {"compilation_config": {"cudagraph_capture_sizes": sizes}}
