"""Adaptive length in the engine: pauses leave nothing out, a worthless head is left alone, a good one is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_eagle_plugin.compat.running import runner_of
from vllm_eagle_plugin.tree import plan
from vllm_eagle_plugin.tree.attention import attached
from vllm_eagle_plugin.tree.budget import StepTimes

from ..cases import CASES
from ..known_answer import known_answer_head, save_head
from ..random_models import HEADS, random_head, random_prompts, random_target
from ..references import public_id, reference_drafts
from ..test_known_answer import continues, walks
from .drafting import tree_engine

pytestmark = pytest.mark.engine
K = 4
CHEAP_DRAFTS = StepTimes({1: 1.0}, {1: 0.0})


class ByTurns:
    """A budget that drafts in one step of six: all requests in the same, or each in its own."""

    def __init__(self, together, largest):
        self.step, self.together, self.largest, self.known = 0, together, largest, {}

    def each(self, requests):
        self.step += 1
        turns = [0 if self.together else self.known.setdefault(r, len(self.known)) for r in requests]
        return [0 if (self.step + turn) % 6 else self.largest for turn in turns]

    def observe(self, *seen):
        pass

    def forget(self, request):
        pass

    def report(self):
        return {}


@pytest.fixture
def by_turns(monkeypatch):
    def use(together):
        monkeypatch.setattr(plan, "Budget", lambda sizes, *a: ByTurns(together, len(sizes)))

    return use


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random-target")
    return folder, random_target(folder)


@pytest.mark.parametrize("together", [True, False], ids=["together", "each in its own step"])
@pytest.mark.parametrize("name", ["eagle-everything", "eagle3-everything", "feature"])
def test_drafts_after_a_pause_are_those_without(name, together, target, proposals, by_turns, tmp_path):
    """While nothing is drafted the head does not run; what it has not read, it reads before it drafts again."""
    by_turns(together)
    folder, model = target
    head = random_head(HEADS[name], model)
    save_head(head, tmp_path / "head")
    asked = random_prompts(20, 90)
    with tree_engine(folder, tmp_path / "head", K, {"adaptive": True}, max_num_seqs=20) as running:
        outputs = running.generate(asked, max_tokens=40)
        order, counters = running.request_ids, running.counters()
    assert 0 < counters.drafts < 20 * 40 / 3
    compared = 0
    for request, prompt, output in zip(order, asked, outputs, strict=True):
        tokens = prompt + output
        expected = reference_drafts(head, model, tokens)
        for proposal in (p for p in proposals if public_id(p) == request and p.drafts):
            if len(prompt) - 1 <= proposal.position < len(expected):
                assert expected.agree(proposal.position, proposal.drafts)
                compared += 1
    assert compared >= 50


@pytest.mark.parametrize("eagle", [{"adaptive": True}, {"tree": "auto"}])
def test_a_worthless_head_is_left_alone(eagle, target, tmp_path):
    folder, model = target
    save_head(random_head(HEADS["eagle3"], model), tmp_path / "head")
    with tree_engine(folder, tmp_path / "head", 8, eagle) as running:
        running.generate(random_prompts(16, 30), max_tokens=150)
        first = running.counters()
        running.generate(random_prompts(16, 30, seed=1), max_tokens=150)
        later = running.counters() - first
    assert later.draft_tokens < 16 * 150 * 8 / 4, "a fixed length would have drafted four times as many"


def test_a_step_without_drafts_is_what_vllm_takes_it_for(target, tmp_path):
    """It is put together in a shorter way than vLLM's; the result must be the same."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    folder, model = target
    save_head(random_head(HEADS["feature"], model), tmp_path / "head")
    with tree_engine(folder, tmp_path / "head", K, {"adaptive": True}) as running:
        runner = runner_of(running.llm)
        described = [
            kind._calc_spec_decode_metadata(runner, np.zeros(3, dtype=np.int32), np.array([4, 5, 9]))
            for kind in (type(runner), GPUModelRunner)
        ]
    ours, theirs = map(vars, described)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(expected)), name


def test_a_pass_without_trees_runs_the_layers_of_vllm(target, tmp_path, monkeypatch, by_turns):
    """And one with trees runs those that heed them; the head's own are left as they are."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.layers.attention import Attention

    by_turns(together=True)
    folder, model = target
    save_head(random_head(HEADS["eagle3"], model), tmp_path / "head")
    seen = []
    shape = {"kind": "dynamic", "top_k": 2, "depth": 3}
    with tree_engine(folder, tmp_path / "head", 6, {"tree": shape, "adaptive": True}) as running:
        runner = runner_of(running.llm)
        layers = get_layers_from_vllm_config(runner.vllm_config, Attention)
        heads = runner._drafting_layers()
        forward = runner._model_forward

        def spy(*args, **kwargs):
            masked = {attached(m) is not None for m in get_forward_context().attn_metadata.values()}
            heeding = {type(layer.impl).__name__ for name, layer in layers.items() if name not in heads}
            seen.append((masked, heeding, {type(layers[name].impl).__name__ for name in heads}))
            return forward(*args, **kwargs)

        monkeypatch.setattr(runner, "_model_forward", spy)
        running.generate(random_prompts(3, 30), max_tokens=40)
    stock, ours = "CPUAttentionBackendImpl", "TreeCPUAttentionImpl"
    assert {(*m,) for m, *_ in seen} == {(True,), (False,)}
    assert all(h == {ours if m == {True} else stock} and head == {ours} for m, h, head in seen)


def test_a_head_that_is_always_right_drafts_the_most(targets, head_folder):
    target = targets()
    save_head(known_answer_head(CASES["eagle-fc-bias"](), target), head_folder)
    with tree_engine(target.folder, head_folder, K, {"adaptive": True}) as running:
        running.llm.collective_rpc(lambda worker: worker.model_runner.drafter.planner.use(CHEAP_DRAFTS))
        outputs = running.generate(walks(target), max_tokens=41)
        running.generate(walks(target), max_tokens=41)
        before = running.counters()
        running.generate(walks(target), max_tokens=41)
        counters = running.counters() - before
        sizes = running.llm.collective_rpc("drafting_report")[0]["budget"]["sizes"]
    assert all(continues(target, p, o) for p, o in zip(walks(target), outputs, strict=True))
    assert counters.acceptance_length > K + 0.5, "all that is drafted, and fewer than K only to know what that brings"
    assert counters.accepted == counters.draft_tokens
    assert max(sizes, key=lambda size: size[-1])[:2] == [K, K]
