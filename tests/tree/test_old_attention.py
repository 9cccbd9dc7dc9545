"""The mathematics of attention under masks; the CUDA path with a stand-in for flash-attn."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vllm_eagle_plugin.tree.old_attention import (
    MaskedRows,
    Part,
    attach,
    attached,
    masked_attention,
    merge,
    paths,
    sees,
)
from vllm_eagle_plugin.tree.tree import Tree

TREE = Tree(tuple(range(8)), (0, 0, 1, 1, 2, 3, 5, 0))
HEADS, KV_HEADS, HEAD_DIM, SCALE = 6, 2, 16, 0.25


def rows_of(tree: Tree, context: int) -> MaskedRows:
    return MaskedRows(0, 0, context, torch.from_numpy(tree.ancestors), torch.from_numpy(tree.depths))


def tensors(rows: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (rows, HEADS, HEAD_DIM), (KV_HEADS, keys, HEAD_DIM), (KV_HEADS, keys, HEAD_DIM)
    query, key, value = (torch.randn(shape).to(dtype) for shape in shapes)
    return 3 * query, key, value


def one_by_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, soft_cap: float, sinks: Any = None) -> Tensor:
    """Attention written out: one row, one head, the keys it sees and no others."""
    output = torch.empty(query.shape)
    for row, head in torch.cartesian_prod(torch.arange(len(query)), torch.arange(HEADS)).tolist():
        kv = head // (HEADS // KV_HEADS)
        scores = key[kv, mask[row]].double() @ query[row, head].double() * SCALE
        scores = soft_cap * torch.tanh(scores / soft_cap) if soft_cap else scores
        every = scores if sinks is None else torch.cat([scores, sinks[head, None].double()])
        output[row, head] = every.softmax(0)[: len(scores)].float() @ value[kv, mask[row]].float()
    return output


@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
def test_masked_attention(window: int | None, soft_cap: float) -> None:
    rows = rows_of(TREE, 11)
    query, key, value = tensors(9, 20)
    mask = sees(rows, window)
    found = masked_attention(query, key, value, mask, SCALE, soft_cap)
    assert torch.allclose(found.output, one_by_one(query, key, value, mask, soft_cap), atol=1e-6)
    if not soft_cap:
        torch_s = scaled_dot_product_attention(
            query.transpose(0, 1), *(x.repeat_interleave(3, 0) for x in (key, value)), mask, scale=SCALE
        )
        assert torch.allclose(found.output, torch_s.transpose(0, 1), atol=1e-6)


def test_what_is_seen() -> None:
    rows = MaskedRows(0, 0, 2, torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool(), torch.tensor([0, 1, 1]))
    assert sees(rows).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]]
    assert sees(rows, 2).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]
    assert paths(rows) == [(0,), (0, 1), (0, 2)]
    level = replace(rows, visible=rows.visible[1:])  # two beams, the newest of three keys
    assert sees(level, 2).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 0, 1]]
    assert paths(level) == [(0, 1), (0, 2)]


def test_unseen_keys_may_be_anything() -> None:
    query, key, value = tensors(9, 20)
    mask = sees(rows_of(TREE, 11), 3)
    clean = masked_attention(query, key, value, mask, SCALE).output
    key[:, ~mask.any(0)] = torch.nan
    value[:, ~mask.any(0)] = torch.inf
    assert torch.equal(masked_attention(query, key, value, mask, SCALE).output, clean)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("soft_cap", [0.0, 1.5])
def test_parts_merge_to_the_whole(soft_cap: float, sinks: bool) -> None:
    query, key, value = tensors(9, 20)
    mask, scores = sees(rows_of(TREE, 11), 5), torch.randn(HEADS) if sinks else None
    parts = []
    for cut in (slice(0, 4), slice(4, 13), slice(13, 20)):  # of the first, most rows see nothing
        parts.append(masked_attention(query, key[:, cut], value[:, cut], mask[:, cut], SCALE, soft_cap))
    assert parts[0].log_sum.isneginf().any()
    expected = one_by_one(query, key, value, mask, soft_cap, scores)
    assert torch.allclose(merge(*parts, sinks=scores), expected, atol=1e-6)
    equal = sum(p.output for p in parts) / 3
    assert not torch.allclose(equal, expected, atol=1e-2)
    empty = Part(torch.full_like(parts[0].output, torch.nan), torch.full_like(parts[0].log_sum, -math.inf))
    assert torch.allclose(merge(*parts, empty, sinks=scores), expected, atol=1e-6)


@pytest.mark.parametrize("wrong", ["visible", "positions"])
def test_shapes_that_do_not_fit_are_refused(wrong: str) -> None:
    rows = rows_of(TREE, 3)
    with pytest.raises(ValueError, match="rows over"):
        replace(rows, **{wrong: getattr(rows, wrong)[:, :4] if wrong == "visible" else rows.positions[:4]})


def test_rows_stay_with_their_metadata() -> None:
    metadata = SimpleNamespace()
    assert attached(metadata) is None
    attach(metadata, [rows_of(TREE, 3)], whole_batch=True)
    assert attached(metadata).whole_batch
    assert attached(SimpleNamespace()) is None


class TestCuda:
    """The CUDA path, with flash-attn's place taken by attention on the CPU."""

    @pytest.fixture
    def tree_attention(self) -> Any:
        return pytest.importorskip("vllm_eagle_plugin.tree.cuda_attention").tree_attention

    def prefix(self, *args: Any) -> Part:
        query, keys, values, blocks, context, scale, soft_cap = args
        self.contexts.append(context)
        at = torch.arange(context)
        key, value = (c[blocks.long()[at // 16], at % 16].transpose(0, 1) for c in (keys, values))
        part = masked_attention(query, key, value, torch.ones(len(query), context).bool(), scale, soft_cap)
        return Part(part.output.to(query.dtype), part.log_sum)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("soft_cap", [0.0, 1.5])
    @pytest.mark.parametrize("window", [None, 2, 20, 50, 1000])
    @pytest.mark.parametrize("context", [0, 1, 16, 77])
    def test_prefix_and_tail(self, tree_attention: Any, context: int, window: Any, soft_cap: float, dtype: Any) -> None:
        self.contexts: list[int] = []
        rows, sinks = rows_of(TREE, context), torch.randn(HEADS)
        query, key, value = tensors(9, context + 9, dtype)
        blocks = torch.randperm(9)[: -(-(context + 9) // 16)]
        caches = torch.full((2, 10, 16, KV_HEADS, HEAD_DIM), torch.nan, dtype=dtype)
        at = torch.arange(context + 9)
        for cache, written in zip(caches, (key, value), strict=True):
            cache[blocks[at // 16], at % 16] = written.transpose(0, 1)
        options = {"scale": SCALE, "soft_cap": soft_cap, "window": window, "sinks": sinks}
        found = tree_attention(self.prefix, query, *caches, blocks, rows, **options)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        expected = one_by_one(query, key, value, sees(rows, window), soft_cap, sinks)
        assert torch.allclose(found, expected, atol=tolerance)
        missed = (~sees(rows, window)[:, :context]).any(0).sum().item()
        begin = -(-missed // 16) * 16
        assert self.contexts == ([context - begin] if begin < context else [])
        causal = replace(rows, visible=torch.ones(9, 9).tril().bool())
        wrong = tree_attention(self.prefix, query, *caches, blocks, causal, **options)
        assert not torch.allclose(wrong, expected, atol=5 * tolerance)

    def test_vllm_s_layer_calls_flash_attn_for_the_prefix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch of a chain and a tree through the layer's class; the stock kernel's part is left to a stub."""
        cuda = pytest.importorskip("vllm_eagle_plugin.tree.cuda_attention")
        from vllm.v1.attention.backends import fa_utils

        def varlen(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            assert options["cu_seqlens_q"].tolist() == [0, 9]
            assert (options["max_seqlen_q"], options["causal"], options["fa_version"]) == (9, False, 3)
            self.contexts = []
            context, blocks = options["seqused_k"].item(), options["block_table"][0]
            assert options["return_softmax_lse"]
            assert options["max_seqlen_k"] == context
            part = self.prefix(q, k, v, blocks, context, options["softmax_scale"], options["softcap"])
            return part.output, part.log_sum.T

        monkeypatch.setattr(fa_utils, "flash_attn_varlen_func", varlen, raising=False)
        stock = cuda.FlashAttentionImpl
        monkeypatch.setattr(stock, "forward", lambda self, layer, q, k, v, cache, metadata, output: output.fill_(7.0))
        impl = stock.__new__(stock)
        impl.__dict__ |= {
            "head_size": HEAD_DIM,
            "scale": SCALE,
            "sliding_window": (39, 0),
            "logits_soft_cap": 2.0,
            "sinks": None,
            "alibi_slopes": None,
            "attn_type": "decoder",
            "kv_cache_dtype": "auto",
            "vllm_flash_attn_version": 3,
        }
        layer = SimpleNamespace(impl=impl)
        assert cuda.unsupported(layer) is None
        cuda.enable([layer])
        query, key, value = tensors(9, 86)
        blocks, cache = torch.randperm(9)[:6], torch.full((10, KV_HEADS, 16, 2 * HEAD_DIM), torch.nan)
        at = torch.arange(86)
        cache[blocks[at // 16], :, at % 16] = torch.cat([key, value], 2).transpose(0, 1)
        metadata = SimpleNamespace(num_actual_tokens=12, block_table=torch.stack([blocks * 0, blocks]))
        rows = replace(rows_of(TREE, 77), request=1, first=3)
        attach(metadata, [rows], whole_batch=False)
        everything = torch.cat([torch.zeros(3, HEADS, HEAD_DIM), query])
        output = layer.impl.forward(layer, everything, None, None, cache, metadata, torch.empty_like(everything))
        assert (output[:3] == 7.0).all()
        assert self.contexts == [77 - 48]
        assert torch.allclose(output[3:], one_by_one(query, key, value, sees(rows, 40), 2.0), atol=1e-6)
        impl.kv_cache_dtype = "fp8_e4m3"
        assert "fp8" in cuda.unsupported(layer)
