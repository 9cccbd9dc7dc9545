"""The plan of `make test-gpu` fits together; what it runs needs a card, but for one case in small."""

from __future__ import annotations

from tests.gpu.drive import judge
from tests.gpu.plan import BATCHES, KNOWN, Case, correctness, speeds

from ..cases import CASES


def test_cases_are_told_apart_and_compare_with_what_runs_before_them():
    seen: set[str] = set()
    for case in (*correctness(), *speeds()):
        assert case.name not in seen
        assert case.same_as is None or case.same_as in seen, case.name
        seen.add(case.name)
    assert set(KNOWN) <= set(CASES)


def test_graphs_are_replayed():
    """vLLM replays a step only where its rows are a captured size."""
    for case in speeds():
        sizes = case.engine["compilation_config"]["cudagraph_capture_sizes"]
        rows = 1 if case.head is None else case.k + 1
        assert all(size % rows == 0 for size in sizes)
        assert rows * case.batch in sizes
    assert {case.batch for case in speeds()} == set(BATCHES)


def test_verdicts(tmp_path):
    plain = {"ok": True, "v2": True, "tokens": [[1, 2], [3, 4]], "seconds": [1.0]}
    case = Case("head", "known", head="known-eagle", expect=5.0, same_as="plain", dtype="float32")
    exact = {**plain, "acceptance_length": 5.0, "drafts": 3}
    assert judge(case, {}, tmp_path)[0] == "not run"
    assert judge(case, {"plain": plain, "head": exact}, tmp_path)[0] == "passed"
    for worse in ({"acceptance_length": 4.5}, {"tokens": [[1, 2], [3, 5]]}, {"v2": False}):
        assert judge(case, {"plain": plain, "head": {**exact, **worse}}, tmp_path)[0] == "FAILED"
    failed = {"ok": False, "error": "ValueError: no"}
    assert judge(case, {"plain": plain, "head": failed}, tmp_path) == ("FAILED", "ValueError: no")
    assert judge(case, {"plain": failed, "head": exact}, tmp_path)[0] == "not run"
