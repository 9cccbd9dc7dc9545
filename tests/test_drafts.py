"""vLLM's drafts against the reference's, token for token, and speculative against plain greedy output."""

from __future__ import annotations

import pytest
import torch

from .engine import engine
from .known_answer import save_head
from .random_models import HEADS, random_head, random_prompts, random_target
from .references import public_id, reference_drafts

pytestmark = pytest.mark.engine
K = 4


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random-target")
    return folder, random_target(folder)


@pytest.fixture(scope="module")
def plain(target):
    """Plain greedy decoding of 50 prompts, the yardstick of every head."""
    with engine(target[0]) as running:
        return running.generate(random_prompts(50, 90), max_tokens=40)


@pytest.mark.parametrize("name", HEADS)
def test_drafts_and_output(name, target, plain, proposals, tmp_path):
    """Chunked prefill throughout: no prompt of more than 32 tokens fits into one step."""
    folder, model = target
    head = random_head(HEADS[name], model)
    save_head(head, tmp_path / "head")
    asked = random_prompts(50, 90)
    with engine(folder, tmp_path / "head", K, max_num_batched_tokens=160, max_num_seqs=24) as running:
        outputs = running.generate(asked, max_tokens=40)
        order = running.request_ids
    assert outputs == plain

    # A head with attention carries, in stock vLLM too, one mistaken token of its own KV cache behind each
    # chunk of a prompt; its drafts are compared where the prompt came in one piece.
    attends = not name.startswith(("feature", "surgery", "projection"))
    compared = 0
    first: dict[str, int] = {}
    for proposal in proposals:
        first.setdefault(public_id(proposal), proposal.position)
    for request, prompt, output in zip(order, asked, outputs, strict=True):
        tokens = prompt + output
        expected = reference_drafts(head, model, tokens)
        for proposal in (p for p in proposals if public_id(p) == request):
            mid_prompt = proposal.position < len(prompt) - 1
            if mid_prompt or (attends and first[request] < len(prompt) - 1):
                continue
            assert tokens[proposal.position + 1] == proposal.sampled
            at = proposal.position
            if at < len(expected):
                assert expected.agree(at, proposal.drafts), (request, at, proposal.drafts, expected.drafts[at])
                compared += K
    assert compared >= 200


@pytest.mark.parametrize("name", ["feature", "eagle"])
def test_bfloat16_differs_only_where_tokens_are_tied(name, target, tmp_path):
    """One row and several at once round differently in bf16; where that shows, the two tokens were tied."""
    folder, model = target
    save_head(random_head(HEADS[name], model), tmp_path / "head")
    asked = random_prompts(50, 90)
    with engine(folder, dtype="bfloat16") as running:
        plain = running.generate(asked, max_tokens=40)
    with engine(folder, tmp_path / "head", K, dtype="bfloat16") as running:
        outputs = running.generate(asked, max_tokens=40)
    assert sum(a == b for a, b in zip(plain, outputs, strict=True)) >= 45
    for prompt, one, other in zip(asked, plain, outputs, strict=True):
        if one != other:
            first = next(i for i in range(len(one)) if one[i] != other[i])
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + one[:first]])).logits[0, -1]
            assert abs(logits[one[first]] - logits[other[first]]) < 0.02 * logits.std()
