"""Greedy output with trees is that of plain decoding, token for token, whatever the tree and the schedule."""

from __future__ import annotations

import pytest
import torch

from vllm_eagle_plugin.tree.budget import StepTimes

from ..engine import engine
from ..known_answer import save_head
from ..random_models import heads, random_head, random_target
from .drafting import VOCAB, prompts, tree_engine

pytestmark = pytest.mark.engine
COUNT, LONGEST, TOKENS = 200, 90, 24
SHAPES = {
    "dynamic-16": (16, {"kind": "dynamic"}),
    "dynamic-24-wide": (24, {"kind": "dynamic", "top_k": 8, "depth": 3}),
    "dynamic-8": (8, {"kind": "dynamic", "depth": 4}),
    "static-28": (28, {"kind": "static", "branches": [4, 2, 2]}),
    "static-12": (12, {"kind": "static"}),
    "auto-16": (16, {"kind": "auto"}),
}
CHEAP_DRAFTS = StepTimes({1: 1.0}, {1: 0.0})
FAMILIES = ["feature", "projection", "eagle", "eagle-everything", "eagle3-everything"]
#: What the default suite runs; the rest is `extended`.
CORE = {
    ("feature", "dynamic-24-wide"),
    ("eagle", "static-28"),
    ("eagle3-everything", "dynamic-16"),
    ("eagle3-everything", "auto-16"),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-target")
    return folder, random_target(folder, VOCAB)


@pytest.fixture(scope="module")
def head(target, tmp_path_factory):
    """`head(family)`: a random head's folder."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = save_head(random_head(heads(VOCAB)[family], target[1]), tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture(scope="module")
def plain(target):
    """Plain greedy decoding: the yardstick."""
    with engine(target[0]) as running:
        return running.generate(prompts(COUNT, LONGEST), max_tokens=TOKENS)


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        pytest.param(f, s, marks=() if (f, s) in CORE else pytest.mark.extended, id=f"{f}-{s}")
        for f in FAMILIES
        for s in SHAPES
    ],
)
def test_same_tokens(family, shape, target, head, plain, monkeypatch):
    """Prompts read in chunks, trees and prompts in the same steps, trees cut short by the token budget."""
    nodes, tree = SHAPES[shape]
    # Drafts that cost nothing: by real costs an auto tree would soon give such heads up.
    monkeypatch.setattr("vllm_eagle_plugin.tree.measure.measured_times", lambda runner: CHEAP_DRAFTS)
    monkeypatch.setattr("vllm_eagle_plugin.tree.budget.Curve.observe", lambda *seen: None)
    with tree_engine(target[0], head(family), nodes, {"tree": tree}, max_num_batched_tokens=160) as running:
        outputs = running.generate(prompts(COUNT, LONGEST), max_tokens=TOKENS)
        counters = running.counters()
    assert outputs == plain
    assert counters.accepted > 100


@pytest.mark.parametrize("family", [pytest.param("feature", marks=pytest.mark.extended), "eagle3-everything"])
def test_preemption_prefix_caching_and_aborts(family, target, head):
    """Requests lose their blocks, find others' blocks, are given up; nobody's text changes."""
    # The last two are longer than two blocks: of those found in the cache, vLLM reads an EAGLE head's last anew.
    asked = prompts(40, LONGEST, seed=1) + [p + p for p in prompts(400, LONGEST, seed=1) if len(p) > 60][:2]
    options = {"block_size": 32, "num_gpu_blocks_override": 24, "max_num_batched_tokens": 128, "max_num_seqs": 12}
    with engine(target[0], **options) as running:
        plain = running.generate(asked, max_tokens=60)
    with tree_engine(
        target[0], head(family), 16, {"tree": {"kind": "dynamic"}}, enable_prefix_caching=True, **options
    ) as running:
        first = running.generate(asked, max_tokens=60)
        _start_and_abort(running, asked)
        running.generate(asked[-2:], max_tokens=60)
        again = running.generate(asked[-2:], max_tokens=60)
        found = {m.name: m.value for m in running.llm.get_metrics() if hasattr(m, "value")}
        assert not running.runner.proposed or set(running.runner.proposed) <= set(running.runner.requests)
    assert found["vllm:num_preemptions"] > 0
    assert found["vllm:prefix_cache_hits"] > 0
    assert first == plain
    assert again == plain[-2:]


def _start_and_abort(running, asked):
    from vllm import SamplingParams, TokensPrompt

    serving = running.llm.llm_engine
    for i, prompt in enumerate(asked[:8]):
        serving.add_request(f"gone-{i}", TokensPrompt(prompt_token_ids=prompt), SamplingParams(max_tokens=60))
    for _ in range(6):
        serving.step()
    serving.abort_request([f"gone-{i}" for i in range(8)])
    serving.step()


def test_near_the_end_of_the_context(target, head):
    """Where a tree no longer fits, decoding goes on without to the last token."""
    asked = prompts(12, 50, seed=2)
    with engine(target[0], max_model_len=64) as running:
        plain = running.generate(asked, max_tokens=64)
    with tree_engine(target[0], head("eagle"), 16, {"tree": {"kind": "dynamic"}}, max_model_len=64) as running:
        outputs = running.generate(asked, max_tokens=64)
    assert outputs == plain
    assert all(len(p) + len(o) == 64 for p, o in zip(asked, outputs, strict=True))


def test_bfloat16_in_the_layout_of_this_machine(target, head):
    """The layout that vLLM packs bf16 keys in; texts may part only where the two tokens are tied."""
    asked = prompts(60, LONGEST, seed=3)
    with engine(target[0], dtype="bfloat16") as running:
        plain = running.generate(asked, max_tokens=TOKENS)
    with tree_engine(
        target[0], head("eagle3-everything"), 16, {"tree": {"kind": "dynamic"}}, dtype="bfloat16"
    ) as running:
        outputs = running.generate(asked, max_tokens=TOKENS)
    for prompt, one, other in zip(asked, plain, outputs, strict=True):
        if one != other:
            first = next(i for i in range(len(one)) if one[i] != other[i])
            with torch.inference_mode():
                logits = target[1](torch.tensor([prompt + one[:first]])).logits[0, -1]
            assert abs(logits[one[first]] - logits[other[first]]) < 0.02 * logits.std()
    assert sum(a == b for a, b in zip(plain, outputs, strict=True)) >= 45


@pytest.fixture
def broken(request, monkeypatch):
    """One part of tree verification left out."""
    from vllm_eagle_plugin.tree import host_v1
    from vllm_eagle_plugin.tree.attention import cpu

    if request.param == "mask":
        monkeypatch.setattr(host_v1, "attach", lambda *a, **k: None)
    elif request.param == "positions":
        monkeypatch.setattr(host_v1.TreeRunner, "_set_positions", lambda *a: None)
    else:
        monkeypatch.setattr(cpu, "move_slots", lambda *a: None)


@pytest.mark.parametrize("broken", ["mask", "positions", "compaction"], indirect=True)
def test_each_part_is_needed(broken, target, head, plain):
    """The negative controls: without its part, the output is another."""
    nodes, tree = SHAPES["dynamic-24-wide"]
    with tree_engine(target[0], head("feature"), nodes, {"tree": tree}) as running:
        outputs = running.generate(prompts(COUNT, LONGEST)[:60], max_tokens=TOKENS)
    assert outputs != plain[:60]
