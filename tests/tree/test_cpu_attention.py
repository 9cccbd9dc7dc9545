"""Trees on vLLM's CPU attention: against attention computed plainly, and against the stock kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_eagle_plugin.tree.attention import Tail, attach, drafting, verifying
from vllm_eagle_plugin.tree.attention.cpu import TreeCPUAttentionImpl, enable, unsupported
from vllm_eagle_plugin.tree.attention.reference import masked_attention, sees
from vllm_eagle_plugin.tree.trees import Trees

from .layers import FP8, Case, forward, gather, metadata, write

CASES = {
    "fp32": Case(),
    "bf16": Case(torch.bfloat16),
    "fp16": Case(torch.float16),
    "bf16-plain-rows": Case(torch.bfloat16, isa="vec"),
    "head-dim-80": Case(torch.bfloat16, head_dim=80),
    "small-blocks": Case(block_size=32),
    "one-kv-head": Case(heads=4, kv_heads=1),
    "no-gqa": Case(heads=2, kv_heads=2, head_dim=128),
    "soft-cap": Case(soft_cap=2.0),
    "window": Case(window=20),
    "short-window": Case(window=3),
    "window-small-blocks": Case(window=70, block_size=32),
    "sinks": Case(sinks=torch.float32),
    "sinks-bf16": Case(sinks=torch.bfloat16),
    "everything": Case(torch.bfloat16, soft_cap=5.0, window=40, sinks=torch.bfloat16),
    "fp8": Case(kv_dtype="fp8_e4m3"),
    "fp8-bf16": Case(torch.bfloat16, kv_dtype="fp8_e4m3"),
    "fp8-e5m2": Case(kv_dtype="fp8_e5m2"),
}
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
#: Parents of each node.
TREE = (0, 0, 1, 1, 2, 3, 3, 5, 0, 6, 8, 8, 4, 11, 12, 1)
#: Its rows are computed as they stand: none are picked or put back.
DEPTH_FIRST = (0, 1, 2, 1, 0, 5, 0)
CONTEXTS = (0, 1, 100, 120, 127, 128, 300)

Parents = Sequence[int]


def random_tree(nodes: int) -> Parents:
    return tuple(int(torch.randint(i + 1, ())) for i in range(nodes))


def tail_of(trees: dict[int, Parents], bases: Sequence[int] | int, firsts: Sequence[int] = (0,)) -> Tail:
    """The rows of these requests' trees, whose roots stand at positions `bases` and rows `firsts` of the pass."""
    bases = [bases] if isinstance(bases, int) else bases
    most = max(map(len, trees.values()))
    parents, counts = torch.zeros(len(bases), most, dtype=torch.int64), torch.zeros(len(bases), dtype=torch.int64)
    for request, tree in trees.items():
        parents[request, : len(tree)], counts[request] = torch.tensor(tree), len(tree)
    grown = Trees.of(torch.zeros_like(parents), parents, counts)
    return verifying(grown, torch.tensor(bases), torch.tensor(firsts), (counts + 1) * (counts > 0))


class Request:
    """One request's keys, values and query rows, kept in a layer's cache."""

    def __init__(self, case: Case, layer: object, table: Tensor, context: int, rows: int, tail: int = 0) -> None:
        self.case, self.layer, self.table = case, layer, table
        self.context, self.rows, self.tail = context, rows, tail or rows
        total = context + self.tail
        self.key, self.value = (torch.randn(total, case.kv_heads, case.head_dim, dtype=case.dtype) for _ in range(2))
        self.query = 2 * torch.randn(rows, case.heads, case.head_dim, dtype=case.dtype)
        write(layer, table, 0, self.key, self.value)

    @property
    def fresh(self) -> tuple[Tensor, Tensor]:
        return self.key[-self.rows :], self.value[-self.rows :]

    def kept(self) -> tuple[Tensor, Tensor]:
        """[kv_heads, keys, head_dim] each: keys and values as the cache's dtype has them."""
        if self.case.kv_dtype not in FP8:
            return self.key.transpose(0, 1), self.value.transpose(0, 1)
        # The kernel rounds to fp8 in a way of its own, and in bf16 reads subnormal numbers as zero.
        smallest = torch.finfo(FP8[self.case.kv_dtype]).smallest_normal if self.case.dtype == torch.bfloat16 else 0
        key, value = (x.view(FP8[self.case.kv_dtype]).float() for x in gather(self.layer, self.table, len(self.key)))
        key, value = (x.masked_fill(x.abs() < smallest, 0.0) for x in (key, value))
        return key * self.layer._k_scale_float, value * self.layer._v_scale_float

    def expected(self, tail: Tail, request: int = 0, mask: Tensor | None = None) -> Tensor:
        """What the tail's rows of this request must be; `mask`: if they saw these keys of the last ones instead."""
        impl, count = self.layer.impl, int(tail.counts[request])
        seen = sees(tail.seen[request, :count], int(tail.context[request]), tail.newest, self.case.window)
        if mask is not None:
            seen[:, -mask.shape[1] :] = mask
        query = self.query[-count:]
        return masked_attention(query, *self.kept(), seen, impl.scale, impl.logits_soft_cap, impl.sinks)


def error(found: Tensor, expected: Tensor) -> float:
    return (found.float() - expected.float()).abs().max().item() / expected.float().abs().max().item()


def blocks_for(case: Case, context: int, tail: int) -> Tensor:
    """A request's blocks, in no order; 0 is left out, and so are a few others."""
    count = -(-(context + tail) // case.block_size)
    return torch.randperm(count + 3)[:count] + 1


def allocation(layer: Any) -> Tensor:
    """[blocks, ...] the layer's cache and what is behind it."""
    cache = layer.kv_cache
    blocks = cache.untyped_storage().nbytes() // cache[0].nbytes
    return cache.as_strided((blocks, *cache.shape[1:]), cache.stride())


def room_bytes(case: Case, layer: Any) -> int:
    return case.room * layer.kv_cache[0].nbytes


def single(case: Case, base: int, tree: Parents) -> tuple[Request, Any, Tail]:
    """A request whose root is at position `base`, what describes its pass, and its tail, which is not attached yet."""
    rows = len(tree) + 1
    table = blocks_for(case, base, rows)
    layer = case.layer(len(table) + 4)
    request = Request(case, layer, table, base, rows)
    enable([layer], room_bytes(case, layer))
    return request, metadata(layer, [rows], [base + rows], table[None]), tail_of({0: tree}, base)


@pytest.mark.parametrize("room", [3, 40])
@pytest.mark.parametrize("name", CASES)
def test_tree_rows_see_the_context_and_their_ancestors(name: str, room: int) -> None:
    """With too little room behind the caches for all branches at once, and with enough."""
    case = replace(CASES[name], room=room, between=5)
    for base in CONTEXTS:
        for tree in (TREE, DEPTH_FIRST, random_tree(5), random_tree(40)):
            request, described, tail = single(case, base, tree)
            attach(described, tail)
            before = allocation(request.layer)[:-room].clone()
            found = forward(request.layer, request.query, described)
            tolerance = 0.15 if name == "fp8-bf16" else TOLERANCE[case.dtype]
            assert error(found, request.expected(tail)) < tolerance, (base, tree)
            # Keys that the pass computed are kept in the branches' blocks as those in the cache are moved there.
            assert torch.equal(found, forward(request.layer, request.query, described, request.fresh))
            assert torch.equal(before, allocation(request.layer)[:-room])


def test_rows_before_a_tree_are_a_chain() -> None:
    """A request that comes back computes what it had and verifies drafts in the same step."""
    case, before = CASES["fp32"], 30
    table = blocks_for(case, 100, before + 17)
    layer = case.layer(len(table) + 4)
    enable([layer], room_bytes(case, layer))
    request = Request(case, layer, table, 100, before + 17)
    described = metadata(layer, [request.rows], [100 + request.rows], table[None])
    stock = forward(layer, request.query, described)
    tail = tail_of({0: TREE}, 100 + before, [before])
    attach(described, tail)
    found = forward(layer, request.query, described, request.fresh)
    assert torch.equal(found[:before], stock[:before])
    assert error(found[before:], request.expected(tail)) < 5e-6


@pytest.mark.parametrize("room", [3, 20])
def test_layers_of_one_allocation_share_the_room(room: int) -> None:
    """Layers of a KV cache group read the same metadata; the room is a different number of blocks behind each."""
    case, base = replace(CASES["bf16"], room=room), 200
    table = blocks_for(case, base, 17)
    first = case.layer(3 * 8)
    layers = [first, *(case.layer(0) for _ in range(2))]
    for i, layer in enumerate(layers):
        layer.kv_cache = first.kv_cache[8 * i : 8 * i + 8] if layer is not first else first.kv_cache
    first.kv_cache = first.kv_cache[:8]
    enable(layers, room_bytes(case, first))
    requests = [Request(case, layer, table, base, 17) for layer in layers]
    described, tail = metadata(first, [17], [base + 17], table[None]), tail_of({0: TREE}, base)
    attach(described, tail)
    for request in [*requests, *requests]:
        found = forward(request.layer, request.query, described)
        assert error(found, request.expected(tail)) < TOLERANCE[case.dtype]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_other_masks_are_told_apart(name: str) -> None:
    case = CASES[name]
    request, described, tail = single(case, 100, TREE)
    causal = forward(request.layer, request.query, described)
    attach(described, tail)
    found = forward(request.layer, request.query, described)
    for wrong in (torch.ones(17, 17), torch.ones(17, 17).tril(), torch.eye(17)):
        assert error(found, request.expected(tail, mask=wrong.bool())) > 5 * TOLERANCE[case.dtype]
    assert error(causal, request.expected(tail)) > 5 * TOLERANCE[case.dtype]


def test_a_window_counts_depths_and_not_slots() -> None:
    request, described, tail = single(CASES["short-window"], 100, TREE)
    attach(described, tail)
    found = forward(request.layer, request.query, described)
    assert error(found, request.expected(tail)) < 5e-6
    by_slots = sees(tail.seen[0], 101, -1) & torch.ones(17, 117).tril(100).triu(98).bool()
    assert error(found, request.expected(tail, mask=by_slots)) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_a_chain_is_what_the_stock_kernel_computes(name: str) -> None:
    for context in CONTEXTS:
        request, described, tail = single(CASES[name], context, range(16))
        stock = forward(request.layer, request.query, described)
        attach(described, tail)
        found = forward(request.layer, request.query, described)
        assert torch.equal(found, stock)


def test_alibi_counts_depths() -> None:
    """A path through the tree is computed as the chain that it is."""
    case = Case(alibi=True)
    request, described, tail = single(case, 50, TREE)
    attach(described, tail)
    found = forward(request.layer, request.query, described)
    for leaf in range(17):
        path = torch.tensor([0, *(j + 1 for j in range(16) if int(tail.seen[0, leaf]) >> j & 1)])
        keep = [*range(50), *(50 + path)]
        write(request.layer, request.table, 0, request.key[keep], request.value[keep])
        chain = metadata(request.layer, [len(path)], [len(keep)], request.table[None])
        stock = forward(request.layer, request.query[path], chain)
        assert error(found[leaf], stock[-1]) < 5e-6


@pytest.mark.parametrize("room", [3, 24])
@pytest.mark.parametrize("name", ["fp32", "bf16", "everything", "window-small-blocks", "fp8"])
def test_trees_among_chains_and_prefills(name: str, room: int) -> None:
    case = replace(CASES[name], room=room)
    bases, sizes = (40, 0, 130, 250, 127, 77), (17, 60, 6, 1, 31, 5)
    trees = {0: TREE, 2: random_tree(5), 4: random_tree(30)}
    order = torch.randperm(40) + 1
    table = order[:18].view(6, 3) if case.block_size == 128 else order[:36].view(6, 6)
    bases = bases if case.block_size == 128 else (40, 0, 130, 150, 127, 77)
    layer = case.layer(41)
    enable([layer], room_bytes(case, layer))
    requests = [Request(case, layer, t, c, n) for t, c, n in zip(table, bases, sizes, strict=True)]
    described = metadata(layer, list(sizes), [c + n for c, n in zip(bases, sizes, strict=True)], table)
    firsts = described.query_start_loc.tolist()
    query = torch.cat([r.query for r in requests])
    fresh = tuple(torch.cat(new) for new in zip(*(r.fresh for r in requests), strict=True))
    stock = forward(layer, query, described, fresh)
    tail = tail_of(trees, bases, firsts[:-1])
    attach(described, tail)
    found = forward(layer, query, described, fresh)
    chains = tail_of({i: range(size - 1) for i, size in enumerate(sizes)}, bases, firsts[:-1])
    for i, request in enumerate(requests):
        if sizes[i] == 1:
            continue
        rows = slice(firsts[i], firsts[i + 1])
        assert error(found[rows], request.expected(tail if i in trees else chains, i)) < TOLERANCE[case.dtype]
        assert (i in trees) != (error(found[rows], stock[rows]) < TOLERANCE[case.dtype])
    alone = slice(firsts[3], firsts[4])
    assert error(found[alone], stock[alone]) < TOLERANCE[case.dtype]


@pytest.mark.parametrize("name", ["fp32", "bf16", "window"])
def test_a_level_of_beams_sees_earlier_levels(name: str) -> None:
    case, context, k = CASES[name], 120, 4
    sources = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 3], [2, 2, 0, 1]])
    seen = torch.zeros(1, 1, dtype=torch.int64)
    for depth in range(3):
        drafted = (depth + 1) * k
        seen = seen.gather(1, sources[depth][None]) | (1 << torch.arange(drafted - k, drafted))
        table = blocks_for(case, context, drafted)
        layer = case.layer(len(table) + 4)
        enable([layer], room_bytes(case, layer))
        request = Request(case, layer, table, context, k, drafted)
        described = metadata(layer, [k], [context + drafted], table[None])
        tail = drafting(seen, drafted, torch.tensor([context]))
        attach(described, tail)
        expected = request.expected(tail)
        assert error(forward(layer, request.query, described), expected) < TOLERANCE[case.dtype]
        assert error(forward(layer, request.query, described, request.fresh), expected) < TOLERANCE[case.dtype]


def test_without_trees_the_stock_kernel_runs() -> None:
    request, described, _ = single(Case(), 90, TREE)
    found = forward(request.layer, request.query, described)
    request.layer.impl.__class__ = TreeCPUAttentionImpl.__mro__[1]
    assert torch.equal(found, forward(request.layer, request.query, described))
    assert request.layer.impl.forward(request.layer, *[None] * 5, output=found) is found  # warming up


def test_only_the_layers_given_change() -> None:
    layers = [Case().layer(2) for _ in range(2)]
    enable(layers[:1])
    enable(layers[:1])
    assert [isinstance(layer.impl, TreeCPUAttentionImpl) for layer in layers] == [True, False]
    assert unsupported(layers[0]) is None


def test_what_cannot_carry_trees_says_why() -> None:
    layer = Case(impl={"attn_type": "encoder_only"}).layer(2)
    assert "encoder_only" in unsupported(layer)
    layer.impl = object()
    assert "object" in unsupported(layer)
    with pytest.raises(TypeError, match="object"):
        enable([layer])
