"""Draft trees on GPUs, over vLLM's own attention backends. Not run on a GPU yet; its parts are tested on CPUs.

Rows of trees are our Triton kernel's, all other rows the backend's own. On FlashAttention, in layers without a sliding
window, the keys in front of the trees go through one call of it, without a mask, and the kernel merges its tail in:
the host says where (`lead`). Everywhere else the kernel attends to all keys, more slowly over long contexts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor
from vllm.v1.attention.backend import AttentionType

from . import Tail, attached
from .lead import Lead, led

#: Caches need no room behind them, and no blocks are copied.
ROOM, SMALL_BLOCKS = 0, None
#: Backends that bind caches as [blocks, kv_heads, block_size, 2 * head_dim] in a dtype of its own.
BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "FLASHINFER")


def unsupported(layer: Any) -> str | None:
    """Why this attention layer cannot carry trees; None if it can."""
    impl: Any = getattr(layer, "impl", None)
    backend = getattr(layer, "attn_backend", None)
    if backend is None or not hasattr(impl, "logits_soft_cap"):
        return f"its attention is {type(impl).__name__}"
    name, kind = backend.get_name(), getattr(impl, "attn_type", AttentionType.DECODER)
    reasons = {
        f"its backend is {name}, none of {', '.join(BACKENDS)}": name not in BACKENDS,
        f"it is {kind} attention, not a decoder's": kind != AttentionType.DECODER,
        "it has ALiBi biases": impl.alibi_slopes is not None,
        f"its keys and values are kept in {impl.kv_cache_dtype}": _quantized(impl.kv_cache_dtype),
        "its context is spread over devices": getattr(impl, "dcp_world_size", 1) > 1,
        "it attends in chunks": getattr(impl, "chunk_lookback", -1) >= 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _quantized(kv_cache_dtype: str) -> bool:
    return kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32")


def enable(layers: Iterable[Any], room: int = 0) -> None:
    """Make these layers heed `attach`. Only they change: other engines of the process are left alone."""
    for layer in layers:
        if not isinstance(layer.impl, _Heeding):
            stock: Any = type(layer.impl)
            layer.impl.__class__ = _heeding(stock)


def move_slots(layers: Iterable[Any], source: Tensor, destination: Tensor) -> None:
    """Copy keys and values of token slots [n] (block * block size + offset) to slots [n] in these layers' caches.

    All sources are read before any destination is written.
    """
    at: dict[int, tuple[Tensor, ...]] = {}
    for layer in layers:
        cache = layer.kv_cache.transpose(1, 2)  # [blocks, block_size, kv_heads, keys and values]
        size = cache.shape[1]
        if size not in at:
            at[size] = source // size, source % size, destination // size, destination % size
        block, offset, to_block, to_offset = at[size]
        cache[to_block, to_offset] = cache[block, offset]


class _Heeding:
    """Mixin over a backend's attention that heeds `attach`."""

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
        tail = None if attn_metadata is None else attached(attn_metadata)
        said, blocks = led(attn_metadata)
        if tail is None or said is None or not said.alone:
            # Rows of trees come out wrong, and are overwritten.
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)  # type: ignore[misc]
        if tail is not None:
            blocks = attn_metadata.block_table if blocks is None else blocks
            attend(self, query, kv_cache, blocks, tail, said, output)
        return output


@cache
def _heeding(impl: Any) -> Any:
    return type(f"Tree{impl.__name__}", (_Heeding, impl), {})


def attend(
    impl: Any, query: Tensor, kv_cache: Tensor, blocks: Tensor, tail: Tail, said: Lead | None, output: Tensor
) -> None:
    """Write the attention of a tail's rows [T, heads, head_dim]; `impl` says how a layer attends."""
    from .triton_kernel import tail_attention

    version = getattr(impl, "vllm_flash_attn_version", None)
    window = None if impl.sliding_window[0] < 0 else impl.sliding_window[0] + 1
    in_front = None
    if said is not None and window is None and version is not None and not impl.fa4_hd256:
        in_front = context_attention(impl, version, query[: said.rows], kv_cache, blocks, said)
    tail_attention(
        output,
        query,
        kv_cache,
        blocks,
        tail,
        scale=impl.scale,
        soft_cap=impl.logits_soft_cap or 0.0,
        window=window,
        sinks=impl.sinks,
        context=in_front,
    )


def context_attention(impl: Any, version: int, query: Tensor, kv_cache: Tensor, blocks: Tensor, said: Lead) -> Any:
    """Attention of the rows in front [rows, heads, head_dim] to the keys in front of their tails, by FlashAttention;
    sinks are left to whom merges it."""
    from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func

    from .triton_kernel import Part

    keys, values = kv_cache.transpose(1, 2).split(impl.head_size, dim=-1)
    output, log_sum = flash_attn_varlen_func(
        q=query,
        k=canonicalize_singleton_dim_strides(keys),
        v=canonicalize_singleton_dim_strides(values),
        max_seqlen_q=said.widest,
        cu_seqlens_q=said.starts,
        max_seqlen_k=said.longest,
        seqused_k=said.contexts,
        softmax_scale=impl.scale,
        causal=False,
        block_table=blocks[: len(said.contexts)],
        softcap=impl.logits_soft_cap or 0.0,
        return_softmax_lse=True,
        scheduler_metadata=said.schedule,
        num_splits=said.splits if version == 3 else 0,
        fa_version=version,
    )
    return Part(output, log_sum)
