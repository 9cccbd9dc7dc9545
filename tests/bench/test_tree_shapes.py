"""Shapes of trees on a command line, and a sweep over them: in a table, on a page, in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.image import imread
from vllm_eagle_plugin.benchmarks.methods import Method, drafting_of
from vllm_eagle_plugin.benchmarks.report import write_report
from vllm_eagle_plugin.benchmarks.report.sweep_page import rows_at
from vllm_eagle_plugin.benchmarks.speed_schema import Sweep
from vllm_eagle_plugin.benchmarks.tree_shapes import tree_method

from vllm_eagle_plugin.errors import UsageError

from ..cases import CASES, SUBSET
from ..known_answer import save_head
from ..tree.branching import confused_head, steps
from .command import run_cli
from .pages import sweep_result

HEAD = Method("head, k=4", {"model": "a/head", "num_speculative_tokens": 4, "disable_padded_drafter_batch": False})


@pytest.mark.parametrize(
    ("text", "nodes", "kind", "depth", "branches"),
    [
        ("4,2,1", 20, "static", 3, (4, 2, 1)),
        ("3", 3, "static", 1, (3,)),
        ("4,2,1/12", 12, "static", 3, (4, 2, 1)),
        ("4x5", 16, "dynamic", 5, ()),
        ("8x1", 8, "dynamic", 1, ()),
        ("4x5/40", 40, "dynamic", 5, ()),
        ("auto", 16, "auto", 5, ()),
        ("auto/6", 6, "auto", 5, ()),
    ],
)
def test_what_a_shape_means(text: str, nodes: int, kind: str, depth: int, branches: tuple[int, ...]) -> None:
    method = tree_method(HEAD, text)
    drafting = drafting_of(method.speculative)
    assert drafting is not None
    shape = drafting.shape
    assert (method.k, shape.kind, shape.depth, shape.branches) == (nodes, kind, depth, branches)
    assert method.speculative["model"] == "a/head"
    assert method.name == f"tree {text.split('/')[0]}, at most {nodes} nodes"


@pytest.mark.parametrize("text", ["", "x", "0", "4,0", "4x", "4x5x2", "auto/", "auto/0", "4,2/x", "dynamic", "4, 2"])
def test_no_shape(text: str) -> None:
    with pytest.raises(UsageError, match="continuations by level"):
        tree_method(HEAD, text)


def test_a_shape_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match="top_k 8 and depth 5"):
        tree_method(HEAD, "8x5/16")
    with pytest.raises(UsageError, match="without a head"):
        tree_method(Method("ngram", {"method": "ngram", "num_speculative_tokens": 4}), "4x5")


def test_drawn(tmp_path: Path) -> None:
    """Chains and trees of each batch size, plain decoding not among them."""
    result = sweep_result()
    page, picture, without = tmp_path / "s.html", tmp_path / "s.png", tmp_path / "w.png"
    write_report(result, page, picture)
    write_report(result.model_copy(update={"trees": []}), None, without)
    for batch in (1, 8):
        assert f"Acceptance length by shape, concurrency {batch}" in page.read_text()
        assert [r.name for r in rows_at(result, batch)] == [
            "plain", "k=1", "k=2", "k=3", "k=4", "tree 4,2,1, at most 20 nodes", "tree auto/16",
        ]  # fmt: skip
    assert imread(picture).shape[0] > 1.5 * imread(without).shape[0]


@pytest.mark.engine
def test_swept(targets, head_folder, tmp_path: Path) -> None:
    """A tree with both of a confused head's favourites accepts all that it drafts, its chain what theory says."""
    target = targets("llama", SUBSET)
    head, confused = confused_head(CASES["eagle3"](), target)
    save_head(head, head_folder)
    prompts, tokens = [target.walk(3, 4), target.walk(9, 4)], 13
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt_token_ids": p}) + "\n" for p in prompts))
    settings = {"dtype": "float32", "max_model_len": 64, "max_num_seqs": 2, "enforce_eager": True}
    options = ["--engine-args", json.dumps(settings | {"skip_tokenizer_init": True}), "--prompts", file]
    done = run_cli(
        "bench", "sweep", "--target", target.folder, "--head", head_folder, "-k", 2, "--tree", "2,2", "--max-tokens",
        tokens, *options, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = Sweep.model_validate_json(done.stdout)
    (tree,) = result.trees
    assert tree.acceptance is not None
    assert tree.acceptance.acceptance_length.value == 3
    accepted = [n for p in prompts for n in steps(target, p, tokens, 2, confused)]
    chain = next(r for r in result.rows if r.num_speculative_tokens == 2)
    assert chain.acceptance is not None
    assert chain.acceptance.acceptance_length.value == pytest.approx(1 + sum(accepted) / len(accepted))
