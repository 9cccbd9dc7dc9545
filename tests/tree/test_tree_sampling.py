"""Trees above temperature 0: every sampling parameter draws from the distribution that plain decoding draws from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ..cases import CASES
from ..engine import engine
from ..known_answer import known_answer_head, save_head
from ..known_answer.target import VOCAB
from .drafting import tree_engine

pytestmark = pytest.mark.engine
SAMPLES, TOKENS, PROMPT = 8000, 4, [5, 3, 9]
PARAMETERS = {
    "temperature": {},
    "top-k-top-p": {"top_k": 6, "top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "penalties": {"presence_penalty": 0.8, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
    "logit-bias": {"logit_bias": {1: 2.0, 7: -3.0}},
}
NODES, TREE = 5, {"kind": "dynamic", "top_k": 2, "depth": 3}


@pytest.fixture(scope="module")
def target(markov):
    """With its exact logits."""
    built, built.logits = markov
    return built


def distributions(target, texts, sampling):
    """[N, T, V] from what each token of `texts` [N, T] should have been drawn."""
    samples, length = texts.shape
    previous = torch.cat([texts.new_full((samples, 1), PROMPT[-1]), texts[:, :-1]], 1)
    counts = torch.zeros(samples, VOCAB, dtype=torch.double)
    prompted = torch.zeros(VOCAB, dtype=torch.bool)
    prompted[PROMPT] = True
    found = []
    for step in range(length):
        logits = target.logits[previous[:, step]].clone()
        for token, bias in sampling.get("logit_bias", {}).items():
            logits[:, token] += bias
        seen = prompted | (counts > 0)
        repetition = sampling.get("repetition_penalty", 1.0)
        logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        logits -= sampling.get("frequency_penalty", 0.0) * counts
        logits -= sampling.get("presence_penalty", 0.0) * (counts > 0)
        if "min_p" in sampling:
            probabilities = logits.softmax(-1)
            least = sampling["min_p"] * probabilities.amax(-1, keepdim=True)
            logits = logits.masked_fill(probabilities < least, -torch.inf)
        if "top_k" in sampling:
            logits = logits.masked_fill(logits < logits.topk(sampling["top_k"], -1).values[:, -1:], -torch.inf)
        if "top_p" in sampling:
            ordered, order = logits.sort(-1)
            gone = ordered.softmax(-1).cumsum(-1) <= 1 - sampling["top_p"]
            gone[:, -1] = False
            logits = ordered.masked_fill(gone, -torch.inf).gather(1, order.argsort(-1))
        found.append(logits.softmax(-1))
        counts[torch.arange(samples), texts[:, step]] += 1
    return torch.stack(found, 1)


def deviations(target, texts, sampling):
    """How far off the texts are, in standard deviations: how often the likeliest token (what a head drafts
    first) was drawn, and, of all tokens, the one that is furthest from what it should be."""
    exact = distributions(target, texts, sampling)
    drawn = torch.zeros_like(exact).scatter_(2, texts[..., None], 1)
    assert bool((exact.gather(2, texts[..., None]) > 0).all()), "a token was drawn that could not be"
    chance = exact.amax(-1)
    likeliest = texts == exact.argmax(-1)
    first = float((likeliest.double() - chance).sum() / (chance * (1 - chance)).sum().sqrt())
    variance = (exact * (1 - exact)).sum((0, 1)).clamp_min(1e-9)
    each = ((drawn - exact).sum((0, 1)) / variance.sqrt())[variance > 20]
    return abs(first), float(each.abs().max())


def assert_lossless(target, texts, sampling):
    first, furthest = deviations(target, texts, sampling)
    assert first < 4
    assert furthest < 4.5  # the largest of some sixty


def drawn(running, kinds, samples):
    """Texts [samples, T] for each kind of sampling, all in the same batches."""
    from vllm import SamplingParams

    asked = [kind for kind in kinds for _ in range(samples)]
    params = [
        SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, **PARAMETERS[kind])
        for kind in asked
    ]
    order = np.random.default_rng(0).permutation(len(asked))
    texts = running.generate([PROMPT] * len(asked), [params[i] for i in order])
    back = torch.tensor(texts)[torch.from_numpy(order).argsort()]
    return dict(zip(kinds, back.split(samples), strict=True))


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("eagle3", 500),
        pytest.param("eagle3", SAMPLES, marks=pytest.mark.extended),
        pytest.param("feature", SAMPLES, marks=pytest.mark.extended),
    ],
)
def test_every_parameter_follows_the_target(name, samples, target, tmp_path):
    """Requests with every kind of sampling parameter, in the same batches."""
    folder = save_head(known_answer_head(CASES[name](), target), tmp_path / "head")
    others = [kind for kind in PARAMETERS if kind != "temperature"]
    with tree_engine(target.folder, folder, NODES, {"tree": TREE}, max_num_seqs=128) as running:
        texts = drawn(running, ["temperature"], SAMPLES) | drawn(running, others, samples)
        counted = running.counters()
    assert 0.1 < counted.accepted / (TREE["depth"] * counted.drafts) < 0.95, "a walk must end at every depth"
    for kind, found in texts.items():
        assert_lossless(target, found, PARAMETERS[kind])
    # The power of the test: the likeliest token, which is what heads draft, three points too likely is noticed.
    found = texts["temperature"]
    likeliest = distributions(target, found, {}).argmax(-1)
    others = float((found != likeliest).double().mean())
    taken = torch.from_numpy(np.random.default_rng(0).random(found.shape) < 0.03 / others)
    assert deviations(target, torch.where(taken, likeliest, found), {})[0] > 4


def test_seeds_draw_what_plain_decoding_draws(target, tmp_path):
    """A request's generator is asked once a token, as without speculation: the same seed, the same text. Nor does it
    matter that a prompt is read in chunks, whose samples are thrown away; stock vLLM's runner dies of that on a CPU."""
    from vllm import SamplingParams

    folder = save_head(known_answer_head(CASES["eagle3"](), target), tmp_path / "head")
    params = [
        SamplingParams(
            temperature=0.5 + 0.1 * (i % 8), top_p=1.0 - 0.05 * (i % 3), seed=i, max_tokens=12, ignore_eos=True,
            detokenize=False,
        )
        for i in range(40)
    ]  # fmt: skip
    asked = [[*PROMPT, i % VOCAB] for i in range(40)]
    with engine(target.folder) as running:
        plain = running.generate(asked, params)
        long = [one * 10 for one in asked[:8]]
        plain_long = [running.generate([one], [how])[0] for one, how in zip(long, params, strict=False)]
    chunks = {"max_num_batched_tokens": 64, "max_num_seqs": 8}
    accepted = []
    for coupled in (False, True):  # drafts made with a request's own noise have no say in what it draws either
        with tree_engine(target.folder, folder, 6, {"tree": {**TREE, "coupled": coupled}}, **chunks) as running:
            assert running.generate(asked, params) == plain
            assert running.generate(asked[20:], params[20:]) == plain[20:]
            assert running.generate(long, params[:8]) == plain_long
            accepted.append(running.counters().accepted)
    assert accepted[1] > accepted[0] > 100, "they are right more often"


@pytest.mark.parametrize("count", [0, 3, -1])
def test_logprobs_are_those_of_plain_decoding(count, target, tmp_path):
    from vllm import SamplingParams, TokensPrompt

    folder = save_head(known_answer_head(CASES["feature"](), target), tmp_path / "head")
    asked = [TokensPrompt(prompt_token_ids=[*PROMPT, i]) for i in range(8)]
    params = SamplingParams(temperature=0, logprobs=count, max_tokens=16, ignore_eos=True, detokenize=False)
    found = []
    options = {"max_logprobs": -1}
    with engine(target.folder, **options) as running:
        found.append(running.llm.generate(asked, params, use_tqdm=False))
    with tree_engine(target.folder, folder, 6, {"tree": TREE}, **options) as running:
        found.append(running.llm.generate(asked, params, use_tqdm=False))
    for one, other in zip(*found, strict=True):
        one, other = one.outputs[0], other.outputs[0]
        assert one.token_ids == other.token_ids
        for ours, theirs in zip(other.logprobs, one.logprobs, strict=True):
            assert list(ours) == list(theirs)
            for token in ours:
                assert ours[token].rank == theirs[token].rank
                assert ours[token].logprob == pytest.approx(theirs[token].logprob, abs=1e-4)
