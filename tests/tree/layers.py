"""Attention layers of vLLM's CPU backend without a model around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm
from torch import Tensor
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.attention.backends import cpu_attn
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata, _get_attn_isa

from vllm_eagle_plugin.compat.versions import version_tuple
from vllm_eagle_plugin.tree.attention.kv_layout import elements, flat, layout_of

current_platform.import_kernels()
if torch.cpu._is_amx_tile_supported():
    torch.cpu._init_amx()  # what vLLM's worker does before it uses matrix tiles

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Case:
    """An attention layer's shape, and how its keys are kept."""

    dtype: torch.dtype = torch.float32
    kv_dtype: str = "auto"
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    block_size: int = 128
    soft_cap: float | None = None
    window: int | None = None
    sinks: torch.dtype | None = None
    alibi: bool = False
    isa: str | None = None
    #: Blocks behind the cache in its allocation: other layers', and room for trees.
    between: int = 0
    room: int = 40
    impl: dict[str, Any] = field(default_factory=dict)

    def layer(self, blocks: int) -> Any:
        """A layer with a cache of `blocks` blocks that hold garbage."""
        if self.sinks == torch.float32 and version_tuple(vllm.__version__) < (0, 31):
            pytest.skip("the CPU kernel of vLLM 0.30 takes sinks in bf16 only")
        stub = SimpleNamespace(model_config=SimpleNamespace(dtype=self.dtype))
        before, cpu_attn.get_current_vllm_config = getattr(cpu_attn, "get_current_vllm_config", None), lambda: stub
        try:
            impl = CPUAttentionBackendImpl(
                self.heads,
                self.head_dim,
                self.head_dim**-0.5,
                self.kv_heads,
                [2.0 ** -(h + 1) for h in range(self.heads)] if self.alibi else None,
                self.window,
                self.kv_dtype,
                self.soft_cap,
                sinks=None if self.sinks is None else torch.randn(self.heads, dtype=self.sinks),
                **self.impl,
            )
        finally:
            cpu_attn.get_current_vllm_config = before
        kept = torch.uint8 if self.kv_dtype in FP8 else self.dtype
        # Not NaN: the stock kernel multiplies what stands in a used block's free slots by zero.
        blocks += self.between + self.room
        cache = torch.randint(100, 120, (blocks, self.kv_heads, self.block_size, 2 * self.head_dim)).to(kept)
        return SimpleNamespace(
            impl=impl,
            kv_cache=cache[: blocks - self.between - self.room],
            isa=self.isa or _get_attn_isa(self.dtype, self.block_size, self.head_dim, self.kv_dtype),
            dtype=self.dtype,
            _k_scale_float=0.5 if self.kv_dtype in FP8 else 1.0,
            _v_scale_float=2.0 if self.kv_dtype in FP8 else 1.0,
        )


def write(layer: Any, table: Tensor, first: int, keys: Tensor, values: Tensor) -> None:
    """Keep keys and values [n, kv_heads, head_dim] of positions `first` and on of a request with these blocks."""
    at, size = torch.arange(first, first + len(keys)), layer.kv_cache.shape[2]
    layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, table.long()[at // size] * size + at % size)


def gather(layer: Any, blocks: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """The first `keys` keys and values in these blocks, [kv_heads, keys, head_dim] each, in the cache's dtype."""
    cache, at = layer.kv_cache, torch.arange(keys)
    slots = blocks.long()[at // cache.shape[2]] * cache.shape[2] + at % cache.shape[2]
    found = flat(cache)[elements(layout_of(layer), cache, slots)].view(cache.dtype)
    return found[:, :, 0].transpose(0, 1), found[:, :, 1].transpose(0, 1)


def metadata(layer: Any, queries: list[int], lengths: list[int], table: Tensor) -> CPUAttentionMetadata:
    """What vLLM's builder makes of a batch: query rows and keys of each request, [requests, blocks] blocks."""
    starts = torch.tensor([0, *queries]).cumsum(0, dtype=torch.int32)
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    impl = layer.impl
    schedule = ops.cpu_attn_get_scheduler_metadata(
        len(queries),
        impl.num_heads,
        impl.num_kv_heads,
        impl.head_size,
        seq_lens,
        layer.dtype,
        starts,
        True,
        impl.sliding_window,
        layer.isa,
        True,
        kv_cache_dtype=impl.kv_cache_dtype,
    )
    return CPUAttentionMetadata(
        num_actual_tokens=sum(queries),
        max_query_len=max(queries),
        query_start_loc=starts,
        max_seq_len=max(lengths),
        seq_lens=seq_lens,
        block_table=table.int(),
        slot_mapping=torch.empty(0, dtype=torch.int64),
        scheduler_metadata=schedule,
    )


def forward(layer: Any, query: Tensor, described: CPUAttentionMetadata, fresh: tuple[Tensor, ...] = ()) -> Tensor:
    """[rows, heads, head_dim] what the layer makes of query rows of this shape.

    fresh: keys and values [rows, kv_heads, head_dim] that the pass computed for them, and has kept already.
    """
    output = torch.full_like(query, torch.nan)
    return layer.impl.forward(layer, query, *(fresh or (None, None)), layer.kv_cache, described, output)
