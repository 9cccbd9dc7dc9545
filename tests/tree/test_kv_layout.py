"""Where the CPU backend keeps keys and values: learnt, read and moved."""

from __future__ import annotations

import pytest
import torch

from vllm_eagle_plugin.tree.attention.kv_layout import LayoutError, layout_of, learn, move_slots

from .layers import Case, gather, write

CASES = {
    "vec-fp32": Case(),
    "vec-fp16": Case(torch.float16),
    "vec-bf16": Case(torch.bfloat16, isa="vec"),
    "vec16": Case(torch.bfloat16, head_dim=80),
    "native-bf16": Case(torch.bfloat16),
    "native-bf16-wide": Case(torch.bfloat16, head_dim=128, block_size=32),
    "fp8": Case(kv_dtype="fp8_e4m3"),
    "native-bf16-fp8": Case(torch.bfloat16, kv_dtype="fp8_e4m3"),
    "fp8-e5m2": Case(kv_dtype="fp8_e5m2"),
}


def filled(case: Case, keys: int = 300):
    """A layer with `keys` keys of a request whose blocks stand in no order, the blocks, and what was written."""
    table = torch.randperm(12)[: -(-keys // case.block_size)] + 1
    layer = case.layer(14)
    written = [torch.randn(keys, case.kv_heads, case.head_dim).clamp(-3, 3).to(case.dtype) for _ in range(2)]
    write(layer, table, 0, *written)
    return layer, table, written


@pytest.mark.parametrize("name", CASES)
def test_keys_and_values_are_read_back(name: str) -> None:
    case = CASES[name]
    layer, table, written = filled(case)
    for found, expected, scale in zip(gather(layer, table, 300), written, (0.5, 2.0), strict=True):
        if found.dtype == torch.uint8:
            found = found.view(getattr(torch, {"fp8_e4m3": "float8_e4m3fn"}.get(case.kv_dtype, "float8_e5m2")))
            assert torch.allclose(found.float() * scale, expected.transpose(0, 1).float(), rtol=0.26, atol=0.04)
        else:
            assert torch.equal(found, expected.transpose(0, 1))


@pytest.mark.parametrize("name", CASES)
def test_moved_keys_stand_where_writing_would_have_put_them(name: str) -> None:
    case = CASES[name]
    layer, table, (keys, values) = filled(case)
    at = torch.tensor([280, 3, 281, 290, 5])
    to = torch.tensor([3, 281, 5, 127, 280])  # sources among the destinations: all are read first
    size = case.block_size
    source, destination = (table[p // size] * size + p % size for p in (at, to))
    move_slots([layer], source, destination)
    moved = [x.clone() for x in (keys, values)]
    for new, old in zip(moved, (keys, values), strict=True):
        new[to] = old[at]
    found, free = layer.kv_cache.clone(), layer.kv_cache
    write(layer, table, 0, *moved)
    assert torch.equal(found, free)


def test_layers_of_different_shapes_move_together() -> None:
    cases = [Case(), Case(torch.bfloat16), Case(kv_heads=1), Case()]
    layers = [filled(case) for case in cases]
    slots = torch.tensor([129, 131]), torch.tensor([130, 129])
    expected = []
    for case, (layer, _, _) in zip(cases, layers, strict=True):
        alone = case.layer(14)
        alone.kv_cache.copy_(layer.kv_cache)
        move_slots([alone], *slots)
        expected.append(alone.kv_cache)
    move_slots([layer for layer, _, _ in layers], *slots)
    assert all(torch.equal(layer.kv_cache, e) for (layer, _, _), e in zip(layers, expected, strict=True))


def test_a_cache_between_others_is_moved_alone() -> None:
    """vLLM's caches are views of one allocation."""
    case = Case()
    layer, table, _ = filled(case)
    shared = torch.randn(3, *layer.kv_cache.shape)
    shared[1] = layer.kv_cache
    before, layer.kv_cache = shared.clone(), shared[1]
    move_slots([layer], table[:1] * 128, table[:1] * 128 + 1)
    assert torch.equal(shared[0], before[0])
    assert torch.equal(shared[2], before[2])
    assert not torch.equal(shared[1], before[1])


def test_layouts_are_learnt_once() -> None:
    assert layout_of(Case().layer(2)) is layout_of(Case(heads=2, kv_heads=2).layer(5))


def test_what_is_no_permutation_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randperm(64, generator=generator)
    layout = learn(lambda rows: torch.stack([rows[anywhere], rows]), 8, 8)
    assert torch.equal(layout.keys.flatten(), anywhere.argsort())
    assert torch.equal(layout.values.flatten(), 64 + torch.arange(64))
    with pytest.raises(LayoutError, match="not what a block holds"):
        learn(lambda rows: torch.stack([rows, rows.cumsum(0)]), 8, 8)
    with pytest.raises(LayoutError, match="not what a block holds"):
        learn(lambda rows: torch.stack([rows, rows.clamp(max=3)]), 8, 8)


def test_an_unknown_layout_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import _custom_ops as ops

    monkeypatch.setattr(ops, "cpu_attn_reshape_and_cache", lambda *args, **kwargs: None)
    with pytest.raises(LayoutError, match=r"vec, torch.float32, blocks of 96"):
        layout_of(Case(block_size=96).layer(2))
