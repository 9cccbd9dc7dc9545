"""Traces of trees and of adaptive chains: on a constructed language, exactly the tree, the odds and the path."""

from __future__ import annotations

import itertools

import pytest
from vllm_eagle_plugin.benchmarks.engine import open_engine
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.report.step_tree import step_tree
from vllm_eagle_plugin.benchmarks.report.trace_page import drawn
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.step_watch import TraceStep
from vllm_eagle_plugin.benchmarks.trace import Trace, explain

from vllm_eagle_plugin.tree.budget import Budget
from vllm_eagle_plugin.tree.observe import observers

from ..cases import CASES, SUBSET
from ..known_answer import Target, save_head
from .branching import confused_head

TOKENS = 20
#: The head's two favourites after the root, and after each of them; then its favourite alone.
BRANCHES = [2, 2, 1]
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 2,
    "enforce_eager": True,
    "skip_tokenizer_init": True,
}


@pytest.fixture
def traced(targets, head_folder):
    """(drafting, most drafts a step) to the target's language, who is confused, the answer and its steps."""

    def run(eagle: dict, nodes: int) -> tuple[Target, set[int], list[int], list[TraceStep]]:
        target = targets("llama", SUBSET)
        head, confused = confused_head(CASES["eagle3"](), target)
        save_head(head, head_folder)
        speculative = {"model": str(head_folder), "num_speculative_tokens": nodes, "eagle": eagle}
        asked = Question(0, "0", token_ids=tuple(target.walk(3, 5)))
        with open_engine(str(target.folder), speculative, OPTIONS) as engine:
            record, steps = engine.trace(asked, Sampling(max_tokens=TOKENS))
            assert not observers, "nobody should be watching any more"
        assert [t for step in steps for t in step.emitted] == record.token_ids
        assert record.token_ids == target.walk(int(target.successor[asked.token_ids[-1]]), TOKENS)
        return target, confused, record.token_ids, steps

    return run


@pytest.mark.engine
def test_a_traced_tree_is_exactly_the_one_drafted(traced) -> None:
    """Of siblings, one is the language's next token and the other its decoy; after a decoy the head knows nothing."""
    target, confused, text, steps = traced({"tree": {"kind": "static", "branches": BRANCHES}}, 10)
    first, *rest = steps
    assert (first.drafts, first.parents, first.emitted) == ([], [], text[:1])
    at, kinds = 1, set()
    for step in rest:
        assert len(step.drafts) == len(step.draft_probs) == len(step.target_probs) == 10
        tree, depths = step.tree, [0]
        for parent in tree.parents:
            depths.append(depths[parent] + 1)
        for node, depth in enumerate(depths):
            assert tree.parents.count(node) == [*BRANCHES, 0][depth]
        node, path = 0, []
        for expected in target.walk(text[at - 1], 4)[1:]:
            children = [i for i, parent in enumerate(tree.parents, 1) if parent == node]
            right = [i for i in children if step.drafts[i - 1] == expected]
            if not right:
                break
            (node,) = right
            path.append(node)
            siblings = [i for i in children if i != node]
            assert step.target_probs[node - 1] > 0.99, "the language leaves no choice"
            assert all(step.target_probs[i - 1] < 0.01 for i in siblings)
            if expected in confused:
                better = max(children, key=lambda i: step.draft_probs[i - 1])
                if siblings:
                    assert better != node, "the decoy should look likelier"
        kinds.add(len(path))
        emitted = step.emitted
        assert step.path == path[: len(emitted)]
        assert emitted == text[at : at + len(emitted)]
        assert step.own_prob is None or step.own_prob > 0.99
        at += len(emitted)
        check_drawing(step)
    assert at == TOKENS
    assert kinds == {2, 3}, "the third level has the head's favourite alone, which is a decoy or right"


def check_drawing(step: TraceStep) -> None:
    """The picture leads along what was emitted, and has every draft."""
    said, on_path, nodes = explain(step, str), [], 0
    branch = step_tree(said, "before")
    level = [branch]
    while level:
        nodes += len(level)
        on_path += [b for b in level if b.on_path]
        level = [child for b in level for child in b.below]
    own = [b for b in on_path if b.tone in ("corrected", "bonus")]
    assert [b.text for b in on_path[1:]] == [str(token) for token in step.emitted]
    assert nodes == 1 + len(step.drafts) + len(own)


@pytest.mark.engine
def test_adaptive_chains_trace(traced, monkeypatch) -> None:
    """Of steps in which nothing was drafted too: the drafts shown are those of the step, not of one before."""
    turns = itertools.cycle([3, 0, 1])
    monkeypatch.setattr(Budget, "each", lambda self, requests: [next(turns)] * len(requests))
    _, _, text, steps = traced({"adaptive": True}, 3)
    assert {len(step.drafts) for step in steps[1:]} == {0, 1, 3}
    at = 1
    for step in steps[1:]:
        assert step.tree.parents == list(range(len(step.drafts)))
        assert len(step.draft_probs) == len(step.target_probs) == len(step.drafts)
        right = [d == t for d, t in zip(step.drafts, text[at:], strict=False)]
        assert len(step.path) == (right.index(False) if False in right else len(right))
        at += len(step.emitted)


def tree_step() -> TraceStep:
    """The likelier child 1 of the root is wrong, the other one and its second continuation are right."""
    return TraceStep(
        [10, 11, 12, 13, 14], [0.6, 0.3, 0.5, 0.4, 0.9], [0.1, 0.8, 0.2, 0.7, 0.5], [11, 13, 99], 0.9, [0, 0, 2, 2, 4]
    )


def test_drawn_as_the_head_would_have_it() -> None:
    root = step_tree(explain(tree_step(), str), "before")
    decoy, right = root.below
    assert [(b.text, b.on_path, b.passed) for b in root.below] == [("10", False, True), ("11", True, False)]
    assert not decoy.below
    assert [(b.text, b.tone, b.passed) for b in right.below] == [("12", "rejected", True), ("13", "accepted", False)]
    assert [(b.text, b.tone, b.draft, b.target) for b in right.below[1].below] == [
        ("14", "rejected", 0.9, 0.5),
        ("99", "corrected", None, 0.9),
    ]


def test_behind_a_cut_is_neither_accepted_nor_rejected() -> None:
    step = tree_step()
    step.emitted, step.own_prob = [11], None
    found = explain(step, str)
    assert [d.accepted for d in found.drafts] == [False, True, False, False, False]
    assert [d.trimmed for d in found.drafts] == [False, False, True, True, True]


def test_behind_a_leaf_the_target_adds_its_own() -> None:
    step = TraceStep([10, 11], [], [0.9, 0.1], [10, 12], 0.5, [0, 0])
    assert [e.how for e in explain(step, str).emitted] == ["accepted", "bonus"]


def test_terminal_shows_what_the_target_corrected() -> None:
    fields = {"target": "t", "prompt": "", "answer": "", "acceptance_length": None, "environment": None}
    trace = Trace.model_construct(
        **fields, steps=[explain(tree_step(), str)], speculative_config={"eagle": {"tree": "auto"}}
    )
    (step,) = drawn(trace)
    assert (step.accepted, step.sampled, step.rejected) == ([11, 13], [99], [14])
