"""Attention on GPUs, as far as a CPU tells: FlashAttention stood in for by dense attention, the kernel interpreted."""

from __future__ import annotations

import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vllm_eagle_plugin.tree.attention import attach, flash
from vllm_eagle_plugin.tree.attention.lead import Graphed, Lead, lead
from vllm_eagle_plugin.tree.attention.reference import masked_attention, tail_attention

from .kernel_cases import Case, case


def stand_in(q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, seqused_k, softmax_scale, causal, block_table, softcap,
             return_softmax_lse, scheduler_metadata, num_splits, fa_version):  # fmt: skip
    """What FlashAttention computes of the same arguments: [rows, heads, head_dim] and [heads, rows]."""
    assert not causal
    assert return_softmax_lse
    output, sums = torch.full(q.shape, math.nan), torch.full((q.shape[1], len(q)), math.inf)
    for request, keys in enumerate(seqused_k.tolist()):
        own, at = slice(*cu_seqlens_q[request : request + 2].tolist()), torch.arange(keys)
        assert own.stop - own.start <= max_seqlen_q
        assert keys <= max_seqlen_k
        slots = block_table[request].long()[at // k.shape[1]], at % k.shape[1]
        key, value = (cache[slots].transpose(0, 1) for cache in (k, v))
        seen = torch.ones(own.stop - own.start, keys, dtype=torch.bool)
        output[own] = masked_attention(q[own], key, value, seen, softmax_scale, softcap)
        scores = q[own].transpose(0, 1) @ key.repeat_interleave(q.shape[1] // len(key), 0).mT * softmax_scale
        sums[:, own] = (softcap * torch.tanh(scores / softcap) if softcap else scores).logsumexp(-1)
    return output, sums


class Stock:
    """A backend's attention: fills its rows with what trees' rows must not keep."""

    def __init__(self, drawn: Case, version: int | None) -> None:
        self.scale, self.logits_soft_cap, self.sinks = (drawn.options[name] for name in ("scale", "soft_cap", "sinks"))
        window = drawn.options["window"]
        self.sliding_window = (-1, -1) if window is None else (window - 1, 0)
        self.head_size, self.vllm_flash_attn_version, self.fa4_hd256 = drawn.query.shape[-1], version, False
        self.calls = 0

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output):
        self.calls += 1
        return output.fill_(7.0)


def in_front(drawn: Case) -> Lead | None:
    """The lead of a pass that begins with a tail's rows; None: it does not."""
    counts = drawn.tail.counts
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if not torch.equal(drawn.tail.first[counts > 0], starts[:-1][counts > 0]):
        return None
    rows = int(starts[-1])
    most, longest = int(counts.max()), int(drawn.tail.context.max())
    return Lead(starts.int(), drawn.tail.context.int(), rows, most, longest, rows == len(drawn.query))


def compare(seed: int, version: int | None) -> Stock:
    """Hold a pass of the wrapped backend against the reference; what it did."""
    drawn = case(seed, torch.float32, windows=version is None)
    rows = int(drawn.tail.counts.sum())
    if version is not None:  # trees and nothing else, in front
        drawn = drawn._replace(tail=drawn.tail._replace(first=drawn.tail.counts.cumsum(0) - drawn.tail.counts))
        drawn = drawn._replace(query=drawn.query[:rows])
    impl = Stock(drawn, version)
    layer = SimpleNamespace(impl=impl)
    flash.enable([layer])
    flash.enable([layer])  # twice is once
    metadata = SimpleNamespace(block_table=drawn.blocks)
    attach(metadata, drawn.tail)
    lead(metadata, in_front(drawn) if version is not None else None, drawn.blocks)
    output = torch.zeros_like(drawn.query)
    impl.forward(layer, drawn.query, None, None, drawn.cache, metadata, output)
    keys, values = drawn.cache.transpose(1, 2).split(impl.head_size, -1)
    expected = tail_attention(drawn.query, keys, values, drawn.blocks, drawn.tail, **drawn.options)
    own = torch.zeros(len(output), dtype=torch.bool)
    for first, count in zip(drawn.tail.first.tolist(), drawn.tail.counts.tolist(), strict=True):
        own[first : first + count] = True
    torch.testing.assert_close(output[own], expected[own], atol=1e-5, rtol=0)
    assert (output[~own] == 7.0).all(), "the other rows are the backend's own"
    return impl


@pytest.fixture
def flash_attention(monkeypatch):
    from vllm.v1.attention.backends import fa_utils

    monkeypatch.setattr(fa_utils, "flash_attn_varlen_func", stand_in, raising=False)


@pytest.mark.v2_only(quick=True)
def test_one_call_and_one_kernel(flash_attention):
    """Where a pass is all trees, the backend's own call is left out; where the lead says nothing of the contexts, the
    kernel attends to them."""
    assert [compare(seed, 3).calls for seed in range(2)] == [0, 0]
    assert compare(1, None).calls == 1


@pytest.mark.v2_only
def test_many_passes(flash_attention):
    for seed in range(2, 42):
        compare(seed, 3 if seed % 2 else None)


def test_what_is_not_told_is_the_backends_own():
    drawn = case(0, torch.float32, windows=False)
    impl = Stock(drawn, 3)
    layer = SimpleNamespace(impl=impl)
    flash.enable([layer])
    output = impl.forward(layer, drawn.query, None, None, drawn.cache, SimpleNamespace(), torch.zeros_like(drawn.query))
    assert impl.calls == 1
    assert (output == 7.0).all()


def test_moved_keys_and_values():
    """Into slots that others are read from, in both memory orders."""
    for order in ((0, 1), (1, 0)):
        cache = torch.arange(4 * 3 * 2 * 5.0).view(4, 3, 2, 5).permute(0, *[1 + d for d in order], 3)
        size, before = cache.shape[2], cache.clone()
        source, destination = torch.tensor([5, 6, 7, 0]), torch.tensor([4, 5, 6, 0])
        flash.move_slots([SimpleNamespace(kv_cache=cache)], source, destination)
        expected = before.clone()
        for a, b in zip(source.tolist(), destination.tolist(), strict=True):
            expected[b // size, :, b % size] = before[a // size, :, a % size]
        assert torch.equal(cache, expected)


REASONS = {
    "backend": ({"name": "FLEX_ATTENTION"}, "backend is FLEX_ATTENTION"),
    "fp8": ({"kv_cache_dtype": "fp8_e4m3"}, "kept in fp8_e4m3"),
    "encoder": ({"attn_type": "encoder_only"}, "encoder_only"),
    "alibi": ({"alibi_slopes": [1.0]}, "ALiBi"),
    "contexts over devices": ({"dcp_world_size": 2}, "spread over devices"),
    "chunks": ({"chunk_lookback": 0}, "chunks"),
}


@pytest.mark.parametrize("case", REASONS)
def test_layers_that_cannot_carry_trees(case):
    changed, words = REASONS[case]
    made = {"name": "FLASH_ATTN", "kv_cache_dtype": "auto", "attn_type": "decoder", "alibi_slopes": None} | changed
    name = made.pop("name")
    layer = SimpleNamespace(
        impl=SimpleNamespace(logits_soft_cap=0, **made), attn_backend=SimpleNamespace(get_name=lambda: name)
    )
    assert words in flash.unsupported(layer)


def test_the_rest_can():
    for name in flash.BACKENDS:
        impl = SimpleNamespace(logits_soft_cap=0, kv_cache_dtype="bfloat16", attn_type="decoder", alibi_slopes=None)
        assert (
            flash.unsupported(SimpleNamespace(impl=impl, attn_backend=SimpleNamespace(get_name=lambda n=name: n)))
            is None
        )
    assert flash.unsupported(SimpleNamespace(impl=None))


def functions(relative: str) -> dict[str, list[str]]:
    """Every function of a module of vLLM's, by name, and what it takes; read, not imported."""
    folder = Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
    tree = ast.parse((folder / relative).read_text())
    return {
        node.name: [a.arg for a in node.args.args + node.args.kwonlyargs]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def test_vllm_takes_what_it_is_given():
    """The calls that only a GPU would make, against the sources of the vLLM that is installed."""
    there = functions("vllm_flash_attn/flash_attn_interface.py")
    assert set(stand_in.__code__.co_varnames[: stand_in.__code__.co_argcount]) <= set(there["flash_attn_varlen_func"])
    asked = {}
    for node in ast.walk(ast.parse(Path(flash.__file__).with_name("lead.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "get_scheduler_metadata":
            asked = {keyword.arg for keyword in node.keywords}
    assert asked
    assert asked <= set(there["get_scheduler_metadata"])
    # The attributes of an implementation that say how it attends, in each backend that is wrapped.
    folder = Path(importlib.util.find_spec("vllm").submodule_search_locations[0]) / "v1/attention/backends"
    for backend in ("flash_attn", "triton_attn", "flashinfer"):
        source = (folder / f"{backend}.py").read_text()
        for name in (
            "scale",
            "sliding_window",
            "logits_soft_cap",
            "sinks",
            "head_size",
            "kv_cache_dtype",
            "alibi_slopes",
        ):
            assert f"self.{name}" in source, f"{backend} has no {name}"
        assert "num_blocks, num_kv_heads, block_size, 2 * head_size" in source or backend == "flashinfer"


def test_graphs_read_what_stays_where_it_was():
    """A lead of the same number of requests has the same tensors each time."""
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=None),
        model_config=SimpleNamespace(max_model_len=64, dtype=torch.bfloat16),
    )
    graphed = Graphed(SimpleNamespace(impl=SimpleNamespace()), config, 16, torch.device("cpu"))
    drawn = case(0, torch.float32, windows=False)
    starts = torch.arange(len(drawn.tail.seen) + 1, dtype=torch.int32)
    first = graphed(drawn.tail, starts)
    then = graphed(drawn.tail._replace(context=drawn.tail.context + 1), starts)
    assert first.contexts.data_ptr() == then.contexts.data_ptr()
    assert torch.equal(then.contexts.long(), drawn.tail.context + 1)
    assert first.longest == 64
