"""What the comparison of a tree's steps with a chain's counts; that it runs is shown with the rest of `make bench`."""

from __future__ import annotations

import pytest
from vllm_eagle_plugin.benchmarks.session import Step

from experiments.tree_overhead import STOCK, TREE, cells, medians, summary, texts
from vllm_eagle_plugin.errors import HeadError


def step(total, rows=5, drafted=True):
    return Step(requests=1, rows=rows, drafted=drafted, total=total, draft=2.0, verify=total - 3, scheduling=1.0)


def test_only_steps_with_all_drafts_count():
    steps = [step(40.0), step(50.0), step(60.0), step(1.0, rows=3), step(2.0, rows=1, drafted=False)]
    assert medians(steps, 4) == {"step": 50.0, "verify": 47.0}
    with pytest.raises(HeadError, match="no step verified 7 drafts"):
        medians(steps, 7)


def test_means_over_texts_and_their_ratio():
    found = [{STOCK: {"step": a, "verify": a - 3}, TREE: {"step": b, "verify": b - 3}} for a, b in ((40, 42), (60, 63))]
    made = summary(found)
    assert made["step"]["ratio"]["value"] == pytest.approx(1.05)
    assert made["step"]["ratio"]["low"] == pytest.approx(1.05)
    assert cells(made["step"]) == ["50.0", "52.5", "1.05 (1.05 to 1.05)"]


@pytest.mark.parametrize(("length", "count"), [(3, 4), (2000, 6), (50000, 2)])
def test_texts_are_as_long_as_asked_and_differ(length, count):
    found = texts(range(9000), length, count)
    assert {len(q.token_ids) for q in found} == {length}
    assert len({q.token_ids for q in found}) == count
