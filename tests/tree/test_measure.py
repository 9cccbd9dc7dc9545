"""What a branch costs, as it is measured at start-up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_eagle_plugin.tree import measure
from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.expansion import branches
from vllm_eagle_plugin.tree.tree import Tree

from .test_cpu_attention import masked


def runner(nodes: int, ran: list[tuple[Tree, int]], *, chooses: bool = True, longest: int = 1024) -> Any:
    planner = SimpleNamespace(shape=Shape("auto", nodes, 1, 1), chooser=object() if chooses else None)
    return SimpleNamespace(
        drafter=SimpleNamespace(planner=planner),
        max_num_tokens=256,
        max_model_len=longest,
        run_without_request=lambda tree, context: ran.append((tree, context)),
    )


@pytest.mark.parametrize("nodes", [2, 3, 8, 15, 16])
def test_a_tree_is_timed_against_the_chain_of_as_many_nodes(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Tree, int]] = []
    monkeypatch.setattr(measure, "measure", lambda run, rows, *_: {n: (run(n), 10.0 + 6 * n)[1] for n in rows})
    cost = measure._branch(runner(nodes, ran), agree=int)
    (chain, context), (tree, _) = ran
    assert chain.is_chain
    assert len(chain) == len(tree) == nodes
    assert context == measure.CONTEXT
    assert tree.branches == nodes // 2
    assert cost == pytest.approx(6 / tree.branches)
    # Rows stand as the attention wants them, like those of trees that are drawn.
    rows = [row for branch in branches(masked(tree, 0)) for row in branch.members]
    assert rows == list(range(nodes + 1))


def test_nothing_is_run_where_nobody_asks_or_there_is_no_room() -> None:
    ran: list[tuple[Tree, int]] = []
    for other in (runner(8, ran, chooses=False), runner(1, ran), runner(8, ran, longest=8)):
        assert measure._branch(other, agree=int) == 0.0
    assert ran == []
