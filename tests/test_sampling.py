"""At temperature 1, speculation follows the target's distribution: total variation within the null's range."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from vllm_eagle_plugin.compat.versions import version_tuple, vllm_distribution

from .cases import CASES
from .engine import engine
from .known_answer import known_answer_head, save_head
from .known_answer.target import VOCAB
from .stock import run_apart, save_stock_eagle

pytestmark = pytest.mark.engine
SAMPLES, TOKENS, PROMPT, K = 4000, 8, [5, 3, 9], 3


@pytest.fixture(scope="module")
def target(markov):
    """With its exact next-token probabilities."""
    built, logits = markov
    built.probabilities = logits.softmax(-1)
    return built


def transitions(texts):
    """[V, V] how often each token followed each, over all generated tokens."""
    whole = torch.tensor([[PROMPT[-1], *text] for text in texts])
    pairs = (whole[:, :-1] * VOCAB + whole[:, 1:]).flatten()
    return torch.bincount(pairs, minlength=VOCAB * VOCAB).view(VOCAB, VOCAB).double()


def distance(counts, probabilities):
    """Total variation between observed and exact transitions, each row weighted by how often it occurred."""
    rows = counts.sum(-1, keepdim=True)
    return float((counts - rows * probabilities).abs().sum() / 2 / rows.sum())


def null_range(counts, probabilities, draws=300):
    """Largest distance among samples of the same sizes drawn from the exact probabilities."""
    generator = np.random.default_rng(0)
    rows = counts.sum(-1).long().tolist()
    exact = (probabilities / probabilities.sum(-1, keepdim=True)).numpy()
    drawn = [generator.multinomial(n, p, size=draws) for n, p in zip(rows, exact, strict=True)]
    return max(distance(torch.from_numpy(d).double(), probabilities) for d in np.stack(drawn, 1))


def assert_lossless(texts, target):
    counts = transitions(texts)
    assert len(texts) >= 4000
    assert distance(counts, target.probabilities) <= 1.05 * null_range(counts, target.probabilities)


CHAINS = [
    pytest.param("feature", "greedy", marks=pytest.mark.extended),
    ("feature", "probabilistic"),
    pytest.param("projection", "probabilistic", marks=pytest.mark.extended),
    pytest.param("surgery", "probabilistic", marks=pytest.mark.extended),
    pytest.param("eagle-fc-bias", "greedy", marks=pytest.mark.extended),
    pytest.param("eagle-fc-bias", "probabilistic", marks=pytest.mark.extended),
    ("eagle3", "probabilistic"),
    ("stock", "greedy"),
    ("stock", "probabilistic"),
]


@pytest.mark.parametrize(("name", "drafting"), CHAINS)
def test_sampling_follows_the_target(name, drafting, target, tmp_path):
    if name == "stock":
        folder = save_stock_eagle(known_answer_head(CASES["eagle"](), target), tmp_path / "head")
        speculative = {"method": "eagle", "draft_sample_method": drafting}
    else:
        folder = save_head(known_answer_head(CASES[name](), target), tmp_path / "head")
        speculative = {"draft_sample_method": drafting}
    with engine(target.folder, folder, K, max_num_seqs=256, speculative=speculative) as running:
        texts = running.generate([PROMPT] * SAMPLES, max_tokens=TOKENS, temperature=1.0)
        counters = running.counters()
    assert_lossless(texts, target)
    assert 0.05 < counters.accepted / counters.draft_tokens < 0.95, "both acceptance and rejection must be exercised"


def test_plain_sampling_is_the_null(target):
    with engine(target.folder, max_num_seqs=256) as running:
        assert_lossless(running.generate([PROMPT] * SAMPLES, max_tokens=TOKENS, temperature=1.0), target)


def test_without_the_correction_it_does_not(target, tmp_path):
    """The negative control: stock vLLM on CPU, without our plugin. That of 0.30 cannot speculate at all."""
    folder = save_stock_eagle(known_answer_head(CASES["eagle"](), target), tmp_path / "head")
    apart = functools.partial(
        run_apart, plugin=False, target=target.folder, head=folder, k=K, samples=SAMPLES, sampled_tokens=TOKENS,
        sampled_prompt=PROMPT, options={"speculative": {"method": "eagle"}},
    )  # fmt: skip
    if version_tuple(vllm_distribution()[1]) == (0, 30):
        with pytest.raises(AssertionError, match="Cannot inspect kernel parameters"):
            apart()
        return
    found = apart()
    assert not found["modules"]
    counts = transitions(found["sampled"])
    assert distance(counts, target.probabilities) > 2 * null_range(counts, target.probabilities)
