"""Drafts made with the noise that the target is sampled with: what they find, and that they change nothing."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from vllm_eagle_plugin.compat.sampler_noise import exponential, foretold, split_mix
from vllm_eagle_plugin.tree.config import Shape
from vllm_eagle_plugin.tree.coupling import Coupled, Coupling
from vllm_eagle_plugin.tree.grow import Beams, grow, select
from vllm_eagle_plugin.tree.walk_v1 import Step, walk

VOCAB, CPU = 300, torch.device("cpu")
SHAPE = Shape("dynamic", 9, 3, 3)


@pytest.fixture(scope="module")
def sampler():
    from vllm.v1.sample.sampler import Sampler

    return Sampler()


def coupling(sampler, seed=0):
    noise = foretold(sampler, VOCAB, CPU)
    assert noise is not None, "vLLM's own sampler"
    return Coupling(noise, VOCAB, CPU, seed)


@pytest.mark.parametrize("size", [7, 300, 128256])
def test_the_noise_of_vllms_sampler_is_known(sampler, size):
    noise = foretold(sampler, size, CPU)
    assert noise in (split_mix, exponential)
    drawn, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    for temperature in (0.3, 1.0, 2.0):
        logits = torch.randn(40, size)
        picked = [
            int(sampler.topk_topp_sampler(row[None] / temperature, {0: drawn}, None, None)[0]) for row in logits.clone()
        ]
        assert picked == [int((row / temperature + noise(ours, size)).argmax()) for row in logits]
        assert torch.equal(drawn.get_state(), ours.get_state())


def test_gumbel_noise():
    for noise in (split_mix, exponential):
        found = noise(torch.Generator().manual_seed(0), 200_000).double()
        assert found.isfinite().all()
        assert found.mean() == pytest.approx(0.5772, abs=0.015)
        assert found.var() == pytest.approx(torch.pi**2 / 6, abs=0.03)


def test_a_sampler_that_draws_otherwise_is_not_believed():
    def draws(logits, generators, k, p):
        return torch.randint(logits.shape[-1], (1,), generator=generators[0]), None

    assert foretold(SimpleNamespace(topk_topp_sampler=draws), VOCAB, CPU) is None


def test_noise_is_that_of_the_draws_to_come(sampler):
    coupled, generator = coupling(sampler), torch.Generator().manual_seed(5)
    ahead = torch.Generator().manual_seed(5)
    noise = foretold(sampler, VOCAB, CPU)
    coming = [noise(ahead, VOCAB) for _ in range(6)]
    before = generator.get_state()
    assert torch.equal(coupled.noise("a", generator, 2), coming[2])
    assert torch.equal(generator.get_state(), before), "nothing was drawn"
    known = coupled.noise("a", generator, 1)
    assert torch.equal(known, coming[1])
    noise(generator, VOCAB)
    assert coupled.noise("a", generator, 0) is known, "made once"
    for _ in range(3):
        noise(generator, VOCAB)
    assert torch.equal(coupled.noise("a", generator, 1), coming[5])
    generator.manual_seed(9)  # as nobody should
    assert torch.equal(coupled.noise("a", generator, 0), noise(torch.Generator().manual_seed(9), VOCAB))


def test_requests_without_a_seed_draw_apart_and_alike_on_every_rank(sampler):
    ranks = [coupling(sampler, seed=4) for _ in range(2)]
    firsts = [[each.noise(r, each.generator(r), 0) for r in "ab"] for each in ranks]
    assert all(torch.equal(one, other) for one, other in zip(*firsts, strict=True))
    assert not torch.equal(*firsts[0])
    ranks[0].forget("a")
    assert not torch.equal(ranks[0].noise("a", ranks[0].generator("a"), 0), firsts[0][0]), (
        "another request by that name"
    )


def accepted(sampler, table, head, temperatures, *, with_noise, ids=None, steps=25):
    """Mean accepted drafts of walks down trees that a head of logits `head` [V, Vd] grew, `table` [V, V] being the
    target's; both by the token before."""
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    batch, own = len(temperatures), coupling(sampler)
    requests = [str(i) for i in range(batch)]
    generators = {i: own.generator(r) for i, r in enumerate(requests) if temperatures[i] > 0}
    heated = torch.tensor(temperatures)
    none = torch.empty(0)
    metadata = SamplingMetadata(
        heated, False, False, None, None, generators, None, True, None, none, none, none, [[]] * batch, None, {},
        LogitsProcessors(),
    )  # fmt: skip

    def level(coupled: Coupled, beams: Beams) -> torch.Tensor:
        return coupled(head[beams.tokens], beams.depth)

    last, right = torch.arange(batch), 0
    for _ in range(steps):
        coupled = Coupled(own if with_noise else None, requests, temperatures, generators, ids)
        found = grow(coupled(head[last], 0), partial(level, coupled), SHAPE, ids)
        trees = select(found, SHAPE.nodes).trees
        first = torch.arange(batch) * (SHAPE.nodes + 1)
        rows = torch.cat([last[:, None], trees.tokens], 1).flatten()
        output, paths = walk(sampler, table[rows], metadata, Step(trees, first, first), takes_argmax=False)
        right += int(paths.counts.sum()) - batch
        last = output.sampled_token_ids.gather(1, paths.counts[:, None] - 1)[:, 0].long()
    return right / steps / batch


def test_a_head_that_knows_the_target_is_right_at_any_temperature(sampler):
    torch.manual_seed(0)
    table, temperatures = 2 * torch.randn(VOCAB, VOCAB), [0.0, 0.5, 1.0, 1.7]
    assert accepted(sampler, table, table, temperatures, with_noise=True) == SHAPE.depth
    assert accepted(sampler, table, table, temperatures, with_noise=False) < 0.8 * SHAPE.depth
    # One that drafts half of the vocabulary is right as long as the target says such.
    ids = torch.arange(0, VOCAB, 2)
    half = table.clone()
    half[:, 1::2] = -torch.inf
    assert accepted(sampler, half, half[:, ids], temperatures, with_noise=True, ids=ids) == SHAPE.depth


def test_a_head_that_is_off_is_right_more_often(sampler):
    torch.manual_seed(1)
    table = 2 * torch.randn(VOCAB, VOCAB)
    head = table + 1.5 * torch.randn(VOCAB, VOCAB)
    both = [accepted(sampler, table, head, [1.0] * 8, with_noise=noise) for noise in (False, True)]
    assert both[1] > 1.3 * both[0]
