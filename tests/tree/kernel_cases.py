"""Random cases for the Triton kernel, held against the reference; see `tests.runner_v2` for the interpreter."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_eagle_plugin.tree.attention import Tail, drafting, verifying
from vllm_eagle_plugin.tree.attention.reference import masked_attention, sees, tail_attention
from vllm_eagle_plugin.tree.trees import Trees

#: Most keys in front of a tail.
CONTEXT = 160


class Case(NamedTuple):
    query: Tensor
    #: [blocks, kv_heads, block_size, 2 * head_dim], NaN where no row of the tail sees a key.
    cache: Tensor
    blocks: Tensor
    tail: Tail
    options: dict[str, Any]


def random_tail(chance: random.Random, block_size: int) -> Tail:
    """Trees of all sizes, none, and rows of other requests in front; or a level of beams."""
    requests, nodes = chance.randint(1, 4), chance.choice([1, 5, 16, 40, 63])
    context = torch.tensor([chance.choice([1, block_size, chance.randint(2, CONTEXT)]) for _ in range(requests)])
    parents = torch.tensor([[chance.randrange(node + 1) for node in range(nodes)] for _ in range(requests)])
    counts = torch.tensor([chance.choice([nodes, chance.randint(1, nodes)]) for _ in range(requests)])
    trees = Trees.of(torch.zeros_like(parents), parents, counts)
    if chance.random() < 0.3:
        k = chance.randint(1, nodes)
        return drafting(trees.ancestors[:, nodes - k :], nodes, context)
    rows = torch.where(torch.rand(requests) < 0.2, 0, counts + 1)
    between = torch.tensor([chance.choice([0, 0, 1, 7]) for _ in range(requests)])
    return verifying(trees, context - 1, (rows + between).cumsum(0) - rows, rows)


def case(seed: int, dtype: torch.dtype, windows: bool) -> Case:
    chance, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    kv_heads, group = chance.choice([(1, 1), (1, 7), (2, 1), (2, 3), (3, 2), (1, 8), (4, 4)])
    head_dim, block_size = chance.choice([8, 16, 40, 64, 80]), chance.choice([1, 3, 16, 32])
    window = chance.choice([None, None, 1, 3, 9, 40]) if windows else None
    tail = random_tail(chance, block_size)
    requests, each = len(tail.seen), -(-(CONTEXT + 64) // block_size)
    blocks = torch.randperm(requests * each + 1, generator=noise)[1:].int().view(requests, each)
    cache = torch.full((requests * each + 1, kv_heads, block_size, 2 * head_dim), math.nan, dtype=dtype)
    if chance.random() < 0.5:  # slots outside heads, as in NHD
        cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
    for request, count in enumerate(tail.counts.tolist()):
        if not count:
            continue
        seen = sees(tail.seen[request, :count], int(tail.context[request]), tail.newest, window)
        at = seen.any(0).nonzero().flatten()
        keys = torch.randn(len(at), kv_heads, 2 * head_dim, generator=noise)
        cache[blocks[request].long()[at // block_size], :, at % block_size] = keys.to(dtype)
    rows = int((tail.first + tail.counts).max()) + chance.randint(1, 3)
    options = {
        "scale": head_dim**-0.5,
        "soft_cap": chance.choice([0.0, 0.0, 2.0, 30.0]),
        "window": window,
        "sinks": chance.choice([None, torch.randn(kv_heads * group, generator=noise)]),
    }
    return Case(torch.randn(rows, kv_heads * group, head_dim, generator=noise).to(dtype), cache, blocks, tail, options)


def context_part(drawn: Case) -> Any:
    """Attention to the contexts alone, as another kernel would hand it over."""
    from vllm_eagle_plugin.tree.attention.triton_kernel import Part

    rows, heads, head_dim = drawn.query.shape
    part = Part(torch.full(drawn.query.shape, math.nan), torch.full((heads, rows), math.inf))
    scale, cap = drawn.options["scale"], drawn.options["soft_cap"]
    for request, count in enumerate(drawn.tail.counts.tolist()):
        context, first = int(drawn.tail.context[request]), int(drawn.tail.first[request])
        own, at = slice(first, first + count), torch.arange(context)
        size = drawn.cache.shape[2]
        both = drawn.cache[drawn.blocks[request].long()[at // size], :, at % size].float().transpose(0, 1)
        key, value = both.split(head_dim, -1)
        everything = torch.ones(count, context, dtype=torch.bool)
        part.output[own] = masked_attention(drawn.query[own], key, value, everything, scale, cap)
        scores = drawn.query[own].float().transpose(0, 1) @ key.repeat_interleave(heads // len(key), 0).mT * scale
        part.log_sum[:, own] = (cap * torch.tanh(scores / cap) if cap else scores).logsumexp(-1)
    return part


def error(seed: int, merged: bool = False, dtype: torch.dtype = torch.float32, forgotten: bool = False) -> float:
    """The greatest difference of the kernel's output from the reference's.

    merged: the contexts are attended to elsewhere. forgotten: the kernel is not told of a row's own key.
    """
    from vllm_eagle_plugin.tree.attention import triton_kernel

    drawn = case(seed, dtype, windows=not merged)
    keys, values = drawn.cache.transpose(1, 2).split(drawn.query.shape[-1], -1)
    expected = tail_attention(drawn.query, keys, values, drawn.blocks, drawn.tail, **drawn.options)
    output = torch.zeros_like(drawn.query)
    tail = drawn.tail._replace(seen=drawn.tail.seen & (drawn.tail.seen - 1)) if forgotten else drawn.tail
    context = context_part(drawn) if merged else None
    triton_kernel.tail_attention(output, drawn.query, drawn.cache, drawn.blocks, tail, **drawn.options, context=context)
    return float((output.float() - expected).abs().max())
