"""Trees on Model Runner V2, whatever the tree, the head and the schedule: the text of plain decoding, token for token."""

from __future__ import annotations

import pytest

from ..cases import CASES
from ..engine import engine
from ..known_answer import known_answer_head, save_head
from ..random_models import heads, random_head, random_target
from ..test_known_answer import continues, walks
from .drafting import VOCAB, prompts, tree_engine

pytestmark = pytest.mark.engine
COUNT, LONGEST, TOKENS = 40, 90, 16
SHAPES = {
    "dynamic-16": (16, {"kind": "dynamic"}),
    "dynamic-24-wide": (24, {"kind": "dynamic", "top_k": 8, "depth": 3}),
    "static-28": (28, {"kind": "static", "branches": [4, 2, 2]}),
}
WIDE = 24, {"tree": {"kind": "dynamic", "top_k": 8, "depth": 3}}
#: Blocks too few for all requests; prompts are read in chunks, beside requests that verify trees.
TIGHT = {"block_size": 32, "num_gpu_blocks_override": 24, "max_num_batched_tokens": 128, "max_num_seqs": 12}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small-target")
    return folder, random_target(folder, VOCAB)


@pytest.fixture(scope="module")
def head(target, tmp_path_factory):
    """`head(family)`: a random head's folder."""
    return lambda family: save_head(random_head(heads(VOCAB)[family], target[1]), tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def plain(target):
    """Plain greedy decoding: the yardstick."""
    with engine(target[0]) as running:
        return running.generate(prompts(COUNT, LONGEST), max_tokens=TOKENS)


@pytest.mark.v2_only
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["feature", "eagle3-everything"])
def test_same_tokens(family, shape, target, head, plain):
    """Prompts read in chunks, trees and prompts in the same steps, trees cut short by the token budget."""
    nodes, tree = SHAPES[shape]
    with tree_engine(
        target[0], head(family), nodes, {"tree": tree}, max_num_batched_tokens=128, max_num_seqs=12
    ) as running:
        assert running.on_v2
        outputs = running.generate(prompts(COUNT, LONGEST), max_tokens=TOKENS)
        counters = running.counters()
    assert outputs == plain
    assert counters.accepted > 20


@pytest.mark.v2_only(quick=True)
def test_one_tree_and_what_it_is_without_moving_keys(target, head, monkeypatch):
    """What `make test` shows of the above, and its negative control."""
    asked = prompts(COUNT, LONGEST)[:8]
    with engine(target[0]) as running:
        plain = running.generate(asked, max_tokens=TOKENS)
    with tree_engine(target[0], head("eagle3-everything"), *WIDE) as running:
        assert running.generate(asked, max_tokens=TOKENS) == plain
        assert running.counters().accepted > 5
        monkeypatch.setattr(running.runner, "_move_slots", lambda *moved: None)
        assert running.generate(asked, max_tokens=TOKENS) != plain


@pytest.mark.v2_only
@pytest.mark.parametrize("part", ["mask", "positions"])
def test_each_part_is_needed(part, target, head, plain, monkeypatch):
    """The other negative controls."""
    from vllm_eagle_plugin.tree import host_v2

    if part == "mask":
        monkeypatch.setattr(host_v2, "attach", lambda *given: None)
    else:
        monkeypatch.setattr(host_v2.TreeRunnerV2, "_set_positions", lambda *given: None)
    with tree_engine(target[0], head("feature"), *WIDE) as running:
        assert running.generate(prompts(COUNT, LONGEST), max_tokens=TOKENS) != plain


@pytest.mark.v2_only
@pytest.mark.parametrize("family", ["feature", "eagle3-everything"])
def test_preemption_prefix_caching_and_async_scheduling(family, target, head):
    """Requests lose their blocks and find others' blocks, steps are scheduled before the last one's tokens are known;
    nobody's text changes."""
    asked = prompts(20, LONGEST, seed=1) + [p + p for p in prompts(400, LONGEST, seed=1) if len(p) > 60][:2]
    with engine(target[0], **TIGHT) as running:
        plain = running.generate(asked, max_tokens=60)
    with tree_engine(
        target[0], head(family), 16, {"tree": {"kind": "dynamic"}}, enable_prefix_caching=True, async_scheduling=True,
        **TIGHT,
    ) as running:  # fmt: skip
        first = running.generate(asked, max_tokens=60)
        running.generate(asked[-2:], max_tokens=60)
        again = running.generate(asked[-2:], max_tokens=60)
        found = {m.name: m.value for m in running.llm.get_metrics() if hasattr(m, "value")}
    assert found["vllm:num_preemptions"] > 0
    assert found["vllm:prefix_cache_hits"] > 0
    assert first == plain
    assert again == plain[-2:]


@pytest.mark.v2_only
def test_near_the_end_of_the_context(target, head):
    """Where a tree no longer fits, decoding goes on without to the last token."""
    asked = prompts(6, 50, seed=2)
    with engine(target[0], max_model_len=64) as running:
        plain = running.generate(asked, max_tokens=64)
    with tree_engine(target[0], head("eagle"), 16, {"tree": {"kind": "dynamic"}}, max_model_len=64) as running:
        outputs = running.generate(asked, max_tokens=64)
    assert outputs == plain
    assert all(len(p) + len(o) == 64 for p, o in zip(asked, outputs, strict=True))


@pytest.mark.v2_only
@pytest.mark.parametrize("name", ["feature-reduced", "eagle", "eagle3-reduced"])
def test_every_level_is_accepted(name, target_for, head_folder):
    """Heads that know the answer, with trees of two children a node: acceptance is what it must be, exactly."""
    config = CASES[name]()
    target = target_for(config)
    save_head(known_answer_head(config, target), head_folder)
    with tree_engine(target.folder, head_folder, 14, {"tree": {"kind": "static", "branches": [2, 2, 2]}}) as running:
        outputs = running.generate(walks(target), max_tokens=25)
        counters = running.counters()
    assert all(continues(target, p, o) for p, o in zip(walks(target), outputs, strict=True))
    assert counters.acceptance_length == 4


#: Sampling parameters, and what each is there for: processors that read what came before, and those that do not.
PROCESSED = {
    "penalties": {"presence_penalty": 0.8, "frequency_penalty": 0.7, "repetition_penalty": 1.2},
    "bad_words": {"bad_words_token_ids": True},
    "min_p": {"temperature": 1.0, "min_p": 0.05, "seed": 7},
    "logit_bias": {"logit_bias": {1: 2.0, 7: -3.0}},
    "top_k_top_p": {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "seed": 3},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": [3, 5, 9], "ignore_eos": False},
    "logprobs": {"logprobs": 3},
    "everything": {
        "temperature": 0.9, "seed": 11, "presence_penalty": 0.5, "min_p": 0.02, "logit_bias": {2: 1.0}, "logprobs": 2,
    },
}  # fmt: skip


def processed(running, asked):
    """Texts and logprobs of every prompt with each of the parameters, all in the same batches."""
    from vllm import SamplingParams, TokensPrompt

    params = []
    for kind, sampling in PROCESSED.items():
        given = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False, **sampling}
        words = given.pop("bad_words_token_ids", None)
        one = SamplingParams(**given)
        if words:
            one._bad_words_token_ids = [[1, 4], [2], [6, 3, 7]]
        params.append(one)
        assert kind
    inputs = [TokensPrompt(prompt_token_ids=p) for p in asked for _ in params]
    outputs = running.llm.generate(inputs, params * len(asked), use_tqdm=False)
    texts = [list(o.outputs[0].token_ids) for o in outputs]
    scores = [
        [{t: (s.logprob, s.rank) for t, s in position.items()} for position in o.outputs[0].logprobs or []]
        for o in outputs
    ]
    return texts, scores


@pytest.mark.v2_only
def test_processors_see_what_plain_decoding_shows_them(target, head, monkeypatch):
    """Penalties, bad words, min_p, logit_bias, min_tokens, truncation, seeds and logprobs, mixed in the same batches."""
    # Triton's interpreter cannot run vLLM's kernel for top-k and top-p; the same in PyTorch is vLLM's too.
    monkeypatch.setattr("vllm.v1.sample.ops.topk_topp_sampler.HAS_TRITON", False)
    asked = prompts(2, 40, seed=4)
    with engine(target[0]) as running:
        texts, scores = processed(running, asked)
    with tree_engine(target[0], head("eagle3-everything"), *WIDE) as running:
        drafted, drafted_scores = processed(running, asked)
        assert running.counters().accepted > 10
    assert drafted == texts
    for one, other in zip(scores, drafted_scores, strict=True):
        assert [position.keys() for position in one] == [position.keys() for position in other]
        for position, drafted_position in zip(one, other, strict=True):
            for token, (logprob, rank) in position.items():
                assert drafted_position[token] == (pytest.approx(logprob, abs=1e-4), rank)
