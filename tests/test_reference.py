"""The reference's parallel chains against one chain at a time through ordinary causal attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vllm_eagle_plugin.reference import build_reference, draft_chain, expected_tensors
from vllm_eagle_plugin.reference.layers import Attention
from vllm_eagle_plugin.reference.memory import ChainMemory

from .cases import CASES
from .known_answer import known_answer_head
from .known_answer.heads import target_states


def one_chain(head, tokens, hidden, position, steps):
    """Drafts from one position: a growing sequence, computed anew for each token."""
    ids = tokens[:, 1 : position + 2]
    states = head.fuse(hidden[:, : position + 1])
    drafts = []
    for _ in range(steps):
        places = torch.arange(ids.shape[1])[None]
        out, fed = head(ids, states, head.new_memory(places))
        drafts.append(int(head.target_ids(head.logits(out)[0, -1].argmax())))
        ids = torch.cat((ids, torch.tensor([[drafts[-1]]])), 1)
        # Earlier positions keep what the target gave, later ones the head's own state.
        states = torch.cat((states, fed[:, -1:]), 1)
    return drafts


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith(("feature-same", "projection-narrow"))])
def test_chains_in_parallel_equal_chains_one_by_one(name, target_for):
    config = CASES[name]()
    target = target_for(config)
    head = build_reference(config).eval()  # random: attention reaches back, drafts are anything
    head.attach_target(target.embedding, target.lm_head)
    tokens = torch.randint(0, config.vocab_size, (1, 12))
    with torch.inference_mode():
        hidden = target_states(config, target, tokens[:, :-1])
        expected = [one_chain(head, tokens, hidden, p, 3) for p in range(11)]
        assert draft_chain(head, tokens, hidden, 3)[0].tolist() == expected


def test_attention_is_torchs(target_for):
    """One pass equals torch's own attention over the rotated heads."""
    config = CASES["eagle"]()
    attention = Attention(config, 0, config.hidden_size)
    x = torch.randn(2, 9, config.hidden_size)
    cos, sin = torch.ones(2, 9, 1, 32), torch.zeros(2, 9, 1, 32)  # no rotation
    q = attention.q_proj(x).view(2, 9, 8, 32).transpose(1, 2)
    k = attention.k_proj(x).view(2, 9, 4, 32).transpose(1, 2)
    v = attention.v_proj(x).view(2, 9, 4, 32).transpose(1, 2)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = attention.o_proj(expected.transpose(1, 2).reshape(2, 9, 256))
    found = attention(x, (cos, sin), ChainMemory(torch.arange(9).expand(2, 9)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("surgery", "body.blocks.2.weight"),
        ("projection", "body.input_projection.bias"),
        ("eagle-fc-bias", "fc.bias"),
        ("eagle-qkv-bias", "layers.0.self_attn.q_proj.bias"),
        ("eagle-qkv-bias", "layers.0.self_attn.v_proj.bias"),
        ("eagle-enorm-hnorm", "embed_norm.weight"),
        ("eagle-enorm-hnorm", "hidden_norm.weight"),
        ("eagle-input-norm", "norm.weight"),
        ("eagle-qk-norm", "layers.0.self_attn.q_norm.weight"),
        ("eagle3-no-final-norm", "fc.bias"),
        ("eagle3-fc-norm", "fc_norm.1.weight"),
        ("eagle3-reduced", "d2t"),
        ("eagle3-two-layers", "layers.1.input_layernorm.weight"),
    ],
)
def test_known_answer_heads_notice_each_part(name, part, target_for):
    """The kit itself: without any one part the drafts are no longer right."""
    config = CASES[name]()
    target = target_for(config)
    head = known_answer_head(config, target)
    tensor = head.state_dict()[part]
    plain_norm = "norm" in part and "q_norm" not in part  # a query norm holds the size of the queries too
    tensor.copy_(torch.ones_like(tensor) if plain_norm else torch.zeros_like(tensor))
    walk = target.walk(int(target.successor[0]), 30)
    tokens = torch.tensor([walk[:21]])
    drafts = draft_chain(head, tokens, target_states(config, target, tokens[:, :-1]), 4)[0]
    right = torch.tensor([walk[p + 2 : p + 6] for p in range(20)])
    assert (drafts == right).float().mean() < 0.7


def test_expected_tensors_are_the_state_dict():
    config = CASES["eagle3-fc-norm"]()
    found = {name: tuple(t.shape) for name, t in build_reference(config).state_dict().items()}
    assert expected_tensors(config) == found
