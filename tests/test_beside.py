"""Chains beside everything else that people serve with: what docs/support.md calls tested is tested here.

Prefix caching, chunked prefill, preemption and tensor parallelism stand in `test_scheduling`, targets that hide their
weights in `test_known_answer`, refusals in `test_runner_v2`.
"""

from __future__ import annotations

from typing import Any

import pytest

from vllm_eagle_plugin.targets.target import read_target

from .beside import quantise, write_tokenizer
from .cases import CASES
from .engine import engine
from .known_answer import build_target, known_answer_head, save_head
from .random_models import HEADS, random_head, random_prompts, random_target
from .test_known_answer import walks

pytestmark = [pytest.mark.engine, pytest.mark.extended]
K = 4
FAMILIES = ["feature", "eagle3"]


def params(**given: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 30, "detokenize": False, **given})


def features() -> dict[str, Any]:
    """What each request asks for beside an answer."""
    from vllm.sampling_params import StructuredOutputsParams

    return {
        "plain": params(),
        "logprobs": params(logprobs=4, prompt_logprobs=2),
        "n": params(n=3, temperature=0.05, seed=7),
        "min_tokens": params(min_tokens=20, stop_token_ids=[5, 6, 7]),
        "structured output": params(structured_outputs=StructuredOutputsParams(regex="[a-h]{25}"), ignore_eos=False),
        "thinking budget": params(thinking_token_budget=3),
    }


def told(output: Any) -> list[tuple[Any, ...]]:
    """Tokens of each of a request's answers, and the log-probabilities that came with them."""
    return [
        (list(o.token_ids), [{t: round(p.logprob, 3) for t, p in at.items()} for at in o.logprobs or []])
        for o in output.outputs
    ]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    target = build_target(tmp_path_factory.mktemp("speaking"))
    write_tokenizer(target.folder)
    return target


@pytest.fixture(scope="module")
def head_for(tmp_path_factory):
    def make(name, target):
        provenance = {"target": read_target(str(target.folder)).fingerprint()}
        head = known_answer_head(CASES[name](), target, K)
        return save_head(head, tmp_path_factory.mktemp("head") / name, provenance)

    return make


def ask_everything(target, head=None):
    options = {
        "skip_tokenizer_init": False, "structured_outputs_config": {"backend": "xgrammar"},
        "reasoning_config": {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"},
    }  # fmt: skip
    asked = features()
    with engine(target.folder, head, K, **options) as running:
        texts = [{"prompt_token_ids": target.walk(0, 3)} for _ in asked]  # 0: thinking has begun
        outputs = running.llm.generate(texts, list(asked.values()), use_tqdm=False)
        return {name: told(output) for name, output in zip(asked, outputs, strict=True)}, running.counters()


@pytest.fixture(scope="module")
def plain(speaking):
    return ask_everything(speaking)[0]


@pytest.mark.v2
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_request_may_ask_for(name, speaking, head_for, plain):
    """Side by side in one batch, each request gets what it gets without a head."""
    found, counters = ask_everything(speaking, head_for(name, speaking))
    assert found == plain
    assert counters.accepted > 0
    assert len(plain["n"]) == 3
    usual = plain["plain"][0][0]
    for changed in ("structured output", "thinking budget"):
        assert plain[changed][0][0] != usual[: len(plain[changed][0][0])], f"{changed} changed nothing"
    assert len(plain["min_tokens"][0][0]) >= 20
    assert all(plain["logprobs"][0][1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantised_target(name, targets, head_for, tmp_path):
    target = targets()
    head = head_for(name, target)
    folder = quantise(target.folder, tmp_path / "quantised")
    prompts = walks(target)
    with engine(folder, dtype="bfloat16") as running:
        expected = running.generate(prompts, max_tokens=30)
    with engine(folder, head, K, dtype="bfloat16") as running:
        assert running.generate(prompts, max_tokens=30) == expected
        assert running.counters().accepted > 0


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A target and a head whose attention matters."""
    folder = tmp_path_factory.mktemp("reading")
    model = random_target(folder / "target")
    return folder / "target", save_head(random_head(HEADS["eagle3"], model), folder / "head")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kv_cache_dtype": "fp8"}, id="fp8 KV"),
        pytest.param(
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, id="connector"
        ),
    ],
)
def test_where_keys_and_values_go(options, reading, tmp_path):
    """Answers are those without a head. With a connector they are asked for twice: stored, then loaded again."""
    target, head = reading
    prompts = random_prompts(6, 60)

    def answers(head, store):
        if connector := options.get("kv_transfer_config"):
            (tmp_path / store).mkdir()
            given = {
                "kv_transfer_config": {
                    **connector,
                    "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / store)},
                }
            }
        else:
            given = options
        with engine(target, head, K, enable_prefix_caching=False, block_size=32, **given) as running:
            once = running.generate(prompts, max_tokens=20)
            if connector:
                assert any((tmp_path / store).iterdir()), "nothing was stored"
                assert running.generate(prompts, max_tokens=20) == once
            return once, running.counters()

    expected, _ = answers(None, "plain")
    found, counters = answers(head, "drafted")
    assert found == expected
    assert counters.drafts > 0
