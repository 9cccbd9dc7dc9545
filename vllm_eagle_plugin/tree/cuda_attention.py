"""Draft trees on vLLM's FlashAttention, V1 runner, without full CUDA graphs. Not run on a GPU yet.

flash-attn knows no masks. So the requests' own keys, which every row of a tree sees, go through it, with the
logarithm of the sums it divides by; the few keys of the tail are attended to densely; and the two are merged.
The mathematics is `attention`'s and tested on CPU, where a stand-in takes flash-attn's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl

from .old_attention import MaskedRows, Part, attached, masked_attention, merge, sees


def unsupported(layer: Any) -> str | None:
    """Why this attention layer cannot carry trees; None if it can."""
    impl = getattr(layer, "impl", None)
    if not isinstance(impl, FlashAttentionImpl):
        return f"its attention is {type(impl).__name__}, not vLLM's FlashAttention"
    reasons = {
        f"it is {impl.attn_type} attention, not a decoder's": impl.attn_type != AttentionType.DECODER,
        "it has ALiBi biases": impl.alibi_slopes is not None,
        "its keys and values are kept in fp8": impl.kv_cache_dtype.startswith("fp8"),
        "its context is spread over devices": getattr(impl, "dcp_world_size", 1) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def enable(layers: Iterable[Any], room: int = 0) -> None:
    """Make these layers heed `attach`. Only they change. They need no room behind their caches."""
    for layer in layers:
        if type(layer.impl) is FlashAttentionImpl:
            layer.impl.__class__ = TreeFlashAttentionImpl
        elif not isinstance(layer.impl, TreeFlashAttentionImpl):
            raise TypeError(f"{type(layer.impl).__name__} cannot carry trees: {unsupported(layer)}")


def move_slots(layers: Iterable[Any], source: Tensor, destination: Tensor) -> None:
    """Copy keys and values of token slots [n] (block * block size + offset) to slots [n] in these layers' caches.

    All sources are read before any destination is written.
    """
    for layer in layers:
        slots = layer.kv_cache.transpose(1, 2)  # [blocks, block_size, kv_heads, keys and values]
        size = slots.shape[1]
        slots[destination // size, destination % size] = slots[source // size, source % size]


class TreeFlashAttentionImpl(FlashAttentionImpl):
    """vLLM's FlashAttention that heeds `attach`."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        masked = None if attn_metadata is None else attached(attn_metadata)
        if masked is None or not masked.rows:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        rows = sum(map(len, masked.rows))
        if not (masked.whole_batch and rows == attn_metadata.num_actual_tokens):
            # The trees' rows come out wrong, and are overwritten.
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        for request in masked.rows:
            mine = slice(request.first, request.first + len(request))
            blocks = attn_metadata.block_table[request.request]
            output[mine] = tree_attention(
                flash_attention(self.vllm_flash_attn_version),
                query[mine],
                keys,
                values,
                blocks,
                request,
                scale=self.scale,
                soft_cap=self.logits_soft_cap,
                window=None if self.sliding_window[0] < 0 else self.sliding_window[0] + 1,
                sinks=self.sinks,
            ).to(output.dtype)
        return output


#: query [rows, heads, head_dim], caches [blocks, block_size, kv_heads, head_dim], blocks [n] of a request, its keys
#: to attend to, scale, soft-cap; to a part that every row sees all of.
Prefix = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, float], Part]


def flash_attention(version: int) -> Prefix:
    """Attention over a request's first keys by flash-attn."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func

    def prefix(
        query: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, context: int, scale: float, soft_cap: float
    ) -> Part:
        numbers = {"dtype": torch.int32, "device": query.device}
        output, log_sum = flash_attn_varlen_func(
            q=query,
            k=keys,
            v=values,
            cu_seqlens_q=torch.tensor([0, len(query)], **numbers),
            max_seqlen_q=len(query),
            seqused_k=torch.tensor([context], **numbers),
            max_seqlen_k=context,
            softmax_scale=scale,
            causal=False,
            block_table=blocks[None],
            softcap=soft_cap,
            return_softmax_lse=True,
            fa_version=version,
        )[:2]
        return Part(output, log_sum.T)  # flash-attn gives sums as [heads, rows]

    return prefix


def tree_attention(
    prefix: Prefix,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    rows: MaskedRows,
    *,
    scale: float,
    soft_cap: float = 0.0,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[rows, heads, head_dim] fp32: attention of one request's rows.

    query: [rows, heads, head_dim]; keys, values: [blocks, block_size, kv_heads, head_dim], the caches; blocks: [n]
    the request's. With a window, the prefix is the blocks that every row sees all of; keys before those are attended
    to with the tail, and those that no row sees not read at all: their blocks may be gone.
    """
    size, context = keys.shape[1], rows.context
    mask = sees(rows, window)
    seen = mask.any(0).nonzero()
    # Each row sees the context from some key on: all rows do from where the last of these is.
    missed = (~mask[:, :context]).any(0).nonzero()
    begin = 0 if not len(missed) else -(-(int(missed[-1]) + 1) // size) * size
    parts = []
    if begin < context:
        parts.append(prefix(query, keys, values, blocks[begin // size :], context - begin, scale, soft_cap))
    densely = torch.cat(
        [torch.arange(min(int(seen[0]), begin), min(begin, context)), torch.arange(context, mask.shape[1])]
    )
    at = densely.to(query.device)
    slots = blocks.long()[at // size], at % size
    key, value = (cache[slots].transpose(0, 1) for cache in (keys, values))
    parts.append(masked_attention(query, key, value, mask[:, densely].to(query.device), scale, soft_cap))
    return merge(*parts, sinks=sinks)
