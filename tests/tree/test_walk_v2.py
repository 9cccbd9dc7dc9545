"""Walks with Model Runner V2's own sampler: drawn tokens follow the target, whichever way the walk goes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_eagle_plugin.tree.trees import Trees

pytestmark = pytest.mark.v2_only(quick=True)
SAMPLES, VOCAB, DEPTH = 8000, 24, 3
#: Two children of the root, two of the first of these, one of each of the two.
PARENTS = (0, 0, 1, 1, 3, 4)
#: Of the likeliest continuations of what it continues, which one each node drafts.
RANKS = (0, 1, 0, 1, 0, 0)


def noise(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """[rows, V] Gumbel noise as vLLM's kernel draws it (murmur3 of seed, position and token), for all rows at once."""
    low = 0xFFFFFFFF

    def turned(x: Tensor, by: int) -> Tensor:
        return ((x << by) | (x >> (32 - by))) & low

    def mixed(h: Tensor, key: Tensor) -> Tensor:
        key = turned((key * 0xCC9E2D51) & low, 15)
        return (turned(h ^ ((key * 0x1B873593) & low), 13) * 5 + 0xE6546B64) & low

    h = torch.zeros(len(seeds), 1, dtype=torch.int64)
    tokens = torch.arange(vocabulary)[None]
    for key in (seeds[:, None] & low, (seeds[:, None] >> 32) & low, positions[:, None] & low, tokens):
        h = mixed(h, key)
    h = h ^ 16
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & low
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & low
    h = h ^ (h >> 16)
    uniform = (h >> 16).double() / 2**16 + ((h & 0xFFFF).double() + 0.5) / 2**32
    return -torch.log(-torch.log1p(-uniform))


def sample(logits, slots, temperature, seeds, positions, apply_temperature, is_drafting, **rest):
    """`gumbel_sample` of vLLM's at temperature 1, which the interpreter would take minutes for."""
    assert not is_drafting
    return (logits.double() + noise(seeds[slots], positions, logits.shape[1])).argmax(-1)


@pytest.fixture(scope="module")
def exact():
    """[V, V] a target's log-probabilities: the next token depends on the last alone; the likeliest has about one half."""
    logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
    logits[torch.arange(VOCAB), (torch.arange(VOCAB) * 7 + 3) % VOCAB] = 3.7
    return logits.log_softmax(-1)


@pytest.fixture
def sampler(monkeypatch):
    import vllm.v1.worker.cpu.shm  # noqa: F401 (what the CPU's worker stands in for CUDA with)
    from vllm.v1.worker.gpu.sample import sampler as module
    from vllm.v1.worker.gpu.states import RequestState

    device = torch.device("cpu")
    states = RequestState(SAMPLES, 64, 64, len(PARENTS), VOCAB, device, 1)
    made = module.Sampler(SimpleNamespace(reasoning_config=None), SAMPLES, VOCAB, device, states)
    made.sampling_states.temperature.np[:] = 1.0
    made.sampling_states.seeds.np[:] = np.random.default_rng(0).integers(-(2**62), 2**62, SAMPLES)
    made.sampling_states.apply_staged_writes()
    drawn = module.gumbel_sample
    own, rows = made.sampling_states, torch.arange(8)
    given = torch.randn(8, VOCAB), rows, own.temperature.gpu, own.seeds.gpu, rows * 1000 + 5
    expected = drawn(*given, apply_temperature=False, is_drafting=False)
    assert torch.equal(sample(*given, apply_temperature=False, is_drafting=False), expected), "not vLLM's noise"
    monkeypatch.setattr(module, "gumbel_sample", sample)
    return made


def batch_of(exact):
    """A step in which every request verifies a tree of what the target finds likeliest, and its logits [rows, V]."""
    from vllm_eagle_plugin.tree.walk_v2 import Step

    roots = torch.randint(VOCAB, (SAMPLES,))
    nodes = [roots]
    for parent, rank in zip(PARENTS, RANKS, strict=True):
        nodes.append(exact[nodes[parent]].topk(2).indices[:, rank])
    tokens = torch.stack(nodes, 1)
    width = tokens.shape[1]
    trees = Trees.of(
        tokens[:, 1:], torch.tensor(PARENTS).expand(SAMPLES, -1), torch.full((SAMPLES,), len(PARENTS)), DEPTH
    )
    base, first = torch.randint(9, 40, (SAMPLES,)), torch.arange(SAMPLES) * width
    slots = torch.arange(SAMPLES)
    batch = SimpleNamespace(
        idx_mapping=slots,
        idx_mapping_np=slots.numpy(),
        logits_indices=torch.arange(SAMPLES * width),
        expanded_idx_mapping=slots.repeat_interleave(width),
        expanded_local_pos=torch.arange(width).repeat(SAMPLES).int(),
        positions=trees.positions(base).flatten(),
        input_ids=tokens.flatten(),
        seq_lens_cpu_upper_bound=torch.full((SAMPLES,), 64),
    )
    step = Step(trees, first, base, first, torch.full((SAMPLES,), len(PARENTS)))
    return batch, step, exact[tokens.flatten()], roots


def deviations(exact, roots, paths, planted=0.0):
    """Of each level, how far off the likeliest token was drawn, in standard deviations; with so much more of it."""
    before, found = roots, []
    for level in range(DEPTH + 1):
        there = paths.tokens[:, level] >= 0
        chance = exact[before[there]].exp()
        likeliest, token = chance.max(-1)
        drawn = (paths.tokens[there, level] == token).double() + planted
        found.append(float((drawn - likeliest).sum() / (likeliest * (1 - likeliest)).sum().sqrt()))
        before = paths.tokens[:, level].clamp(min=0)
    return found


def test_eight_thousand_walks_follow_the_target(exact, sampler):
    from vllm_eagle_plugin.tree.walk_v2 import _at_once

    batch, step, logits, roots = batch_of(exact)
    paths, processed = _at_once(sampler, logits, batch, step, DEPTH)
    assert [int(n) for n in paths.counts.unique()] == [1, 2, 3, 4], "a walk must end at every depth"
    assert max(map(abs, deviations(exact, roots, paths))) < 4
    # Of the first token there are as many as samples: the likeliest three points too likely is noticed.
    assert deviations(exact, roots, paths, planted=0.03)[0] > 4
    rows = (step.logit[:, None] + paths.nodes).flatten()
    assert torch.equal(processed(paths), logits[rows])


def test_level_by_level_the_walk_is_the_same(exact, sampler):
    """The other way, with paths as rows of their own: the same tokens, since a draw is keyed by its position."""
    from vllm_eagle_plugin.tree.walk_v2 import _at_once, _by_level

    batch, step, logits, _ = batch_of(exact)
    paths, processed = _at_once(sampler, logits, batch, step, DEPTH)
    again, levels = _by_level(sampler, logits, batch, step, DEPTH)
    assert torch.equal(again.tokens, paths.tokens)
    assert torch.equal(again.counts, paths.counts)
    there = (paths.tokens >= 0).flatten()
    assert torch.equal(levels(again)[there], processed(paths)[there])


def test_processors_that_read_what_came_before(sampler):
    """What makes a walk go level by level, by who asks for it."""
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

    from vllm_eagle_plugin.tree.walk_v2 import _processors, _reads_history

    class Own(LogitsProcessor):
        def __init__(self):
            pass

        def apply(self, logits, ctx):
            return logits

    def asks(*slots):
        return any(_reads_history(processor, np.array(slots)) for processor in _processors(sampler))

    assert not asks(0, 1, 2)
    sampler.penalties_state.use_penalty[1] = True
    assert asks(0, 1)
    assert not asks(0, 2)
    sampler.logits_processors[2].num_bad_words.np[2] = 3
    assert asks(0, 2)
    sampler.logits_processors.append(Own())
    assert asks(0)


def test_steps_ask_the_host_for_nothing():
    """On `meta` tensors, which hold nothing: whoever asks the host for a value gets an error."""
    from vllm_eagle_plugin.tree.host_v2 import _without
    from vllm_eagle_plugin.tree.walk_v2 import Step

    def numbers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device="meta")

    trees = Trees.of(numbers(3, 6), numbers(3, 6), numbers(3), DEPTH)
    step = Step(trees, numbers(3), numbers(3), numbers(3), numbers(3))
    assert step.rows().shape == (3, 7)
    assert _without(step, numbers(21) > 0).trees.ancestors.shape == (3, 6)
