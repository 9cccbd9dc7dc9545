"""Trees on the demo's chat model and its trained head: requests of every kind in the same batches."""

from __future__ import annotations

import json

import pytest
from vllm_eagle_plugin.conversion import convert

from vllm_eagle_plugin.demo.run import shipped_head

from ..engine import engine
from .drafting import tree_engine

pytestmark = pytest.mark.engine
QUESTIONS = [
    "Name three fruits.",
    "Why is the sky blue?",
    "Write a short poem about rain.",
    "What is the capital of France?",
    "Give me a tip for learning to cook.",
    "Describe a forest in two sentences.",
    "How many days are in a week?",
    "Explain what a computer does.",
]
OPTIONS = {"skip_tokenizer_init": False, "max_model_len": 512, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def served(demo_target, tmp_path_factory):
    """The demo's target, and its head as vLLM wants it."""
    head = tmp_path_factory.mktemp("demo") / "head"
    convert(shipped_head(), str(demo_target), head, verify=False)
    return demo_target, head


def kinds():
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = json.dumps({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}}, "required": ["name", "age"]})  # fmt: skip
    common = {"temperature": 0.0, "max_tokens": 32}
    return {
        "plain": SamplingParams(**common),
        "choice": SamplingParams(
            **common, structured_outputs=StructuredOutputsParams(choice=["red apple", "blue sky"])
        ),
        "json": SamplingParams(**common, structured_outputs=StructuredOutputsParams(json=schema)),
        "min-tokens": SamplingParams(**common, min_tokens=20, stop_token_ids=[28, 30, 17, 198]),
        "stop": SamplingParams(**common, stop=["the", "a "]),
        "bad-words": SamplingParams(**common, bad_words=["the", "is", "of"]),
        "allowed": SamplingParams(**common, allowed_token_ids=list(range(500, 5000))),
        "penalties": SamplingParams(**common, repetition_penalty=1.3, frequency_penalty=0.5),
    }


def answers(running):
    params = kinds()
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    asked = [(kind, chat) for kind in params for chat in chats[:2]] + [("plain", chat) for chat in chats[2:]]
    outputs = running.llm.chat([chat for _, chat in asked], [params[kind] for kind, _ in asked], use_tqdm=False)
    return [(kind, output.outputs[0].text) for (kind, _), output in zip(asked, outputs, strict=True)]


def test_requests_of_every_kind(served):
    """Where drafts cannot be trees, or cannot be at all, requests get what fits by themselves; all of them get
    the answer of plain decoding."""
    target, head = served
    with engine(target, **OPTIONS) as running:
        plain = answers(running)
    with tree_engine(target, head, 16, {"tree": {"kind": "dynamic", "depth": 5}}, **OPTIONS) as running:
        running.llm.chat([[{"role": "user", "content": q}] for q in QUESTIONS], kinds()["plain"], use_tqdm=False)
        tree = running.counters()
        assert answers(running) == plain
        report = running.llm.collective_rpc("drafting_report")[0]
    assert report["fallback_requests"] == {"structured output": 4, "min_tokens": 2}
    assert all('"name"' in text for kind, text in plain if kind == "json")
    assert tree.acceptance_length > 1.3, "a chain of this head gets less than that"
