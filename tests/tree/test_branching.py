"""Known-answer trees: what is accepted is exactly what theory says, and a chain provably gets less."""

from __future__ import annotations

import pytest

from ..cases import CASES, SUBSET
from ..engine import engine
from ..known_answer import save_head
from ..test_known_answer import continues, walks
from .branching import confused_head, steps
from .drafting import tree_engine

pytestmark = pytest.mark.engine
DEPTH, TOKENS = 3, 41
#: Every node has two children: the head's two favourites, one of which is right as long as all before were.
BOTH = {"kind": "static", "branches": [2, 2, 2]}
NODES = 2 + 4 + 8


@pytest.mark.parametrize(
    "name",
    [
        "feature-own-lm-head",
        pytest.param("projection", marks=pytest.mark.extended),
        pytest.param("eagle-own-lm-head", marks=pytest.mark.extended),
        "eagle3",
    ],
)
def test_trees_accept_what_chains_cannot(name, targets, head_folder):
    target = targets("llama", SUBSET)
    head, confused = confused_head(CASES[name](), target)
    save_head(head, head_folder)
    asked = walks(target)
    with engine(target.folder, head_folder, DEPTH) as running:
        outputs = running.generate(asked, max_tokens=TOKENS)
        chain = running.counters()
    expected = [n for prompt in asked for n in steps(target, prompt, TOKENS, DEPTH, confused)]
    assert (chain.drafts, chain.accepted) == (len(expected), sum(expected))
    assert chain.acceptance_length < 0.6 * (DEPTH + 1)

    with tree_engine(target.folder, head_folder, NODES, {"tree": BOTH}) as running:
        assert running.generate(asked, max_tokens=TOKENS) == outputs
        tree = running.counters()
        report = running.llm.collective_rpc("drafting_report")[0]
    assert all(continues(target, p, o) for p, o in zip(asked, outputs, strict=True))
    assert tree.per_position[:DEPTH] == (tree.drafts,) * DEPTH
    assert not any(tree.per_position[DEPTH:])
    assert tree.acceptance_length == DEPTH + 1
    assert tree.draft_tokens == NODES * tree.drafts
    assert report["trees"] == {str(DEPTH): tree.drafts}
    assert report["tree_nodes"] == {str(DEPTH): tree.draft_tokens}
    assert report["tree_accepted"] == {str(DEPTH): tree.drafts}
    assert not report["fallback_requests"]


@pytest.mark.parametrize("name", ["projection", pytest.param("eagle3", marks=pytest.mark.extended)])
def test_hidden_states_must_follow_the_path(name, targets, head_folder, monkeypatch):
    """The negative control: the head reads states of other tokens, so drafts are wrong; the text is not."""
    monkeypatch.setattr("vllm_eagle_plugin.tree.host_v1.TreeRunner._move_states", lambda *a: None)
    target = targets("llama", SUBSET)
    save_head(confused_head(CASES[name](), target)[0], head_folder)
    asked = walks(target)
    with tree_engine(target.folder, head_folder, NODES, {"tree": BOTH}) as running:
        outputs = running.generate(asked, max_tokens=TOKENS)
        found = running.counters()
    assert all(continues(target, p, o) for p, o in zip(asked, outputs, strict=True))
    # Now and then a wrong row is right: it holds the same token on another branch.
    assert found.acceptance_length < DEPTH + 0.5


def test_a_tree_is_never_worse_than_the_chain_in_it(targets, head_folder):
    target = targets("llama", SUBSET)
    head, confused = confused_head(CASES["eagle3"](), target)
    save_head(head, head_folder)
    asked = walks(target)
    expected = [n for prompt in asked for n in steps(target, prompt, TOKENS, DEPTH, confused)]
    tree = {"kind": "dynamic", "depth": DEPTH}
    with tree_engine(target.folder, head_folder, 12, {"tree": tree}) as running:
        outputs = running.generate(asked, max_tokens=TOKENS)
        found = running.counters()
    assert all(continues(target, p, o) for p, o in zip(asked, outputs, strict=True))
    assert found.acceptance_length >= 1 + sum(expected) / len(expected)
