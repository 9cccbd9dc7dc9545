"""What attention of a draft tree costs: one layer's time against the stock kernel's on a chain of as many rows.

A layer of SmolLM's shape (9 query heads, 3 of keys and values, 64 wide), verifying 16 drafts at several context
lengths, for a chain-shaped tree, a tree as heads draw them and a tree of 16 leaves. The caches of 30 layers take
turns, as in a model, so that keys come from memory as they do there. Cases take turns too; a figure is the
fastest turn's, which what else the machine does disturbs least.

`python -m vllm_eagle_plugin.benchmarks.tree_attention [--threads 1] [--rounds 15]`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..command import run_function
from ..tree.old_attention import MaskedRows, attach
from ..tree.tree import Tree

LAYERS, HEADS, KV_HEADS, HEAD_DIM, BLOCK, ROOM = 30, 9, 3, 64, 128, 24
CONTEXTS = (100, 500, 1000, 2000)
TREES = {
    "chain": Tree.chain(range(16)),
    "tree": Tree(tuple(range(16)), (0, 0, 0, 1, 1, 2, 4, 4, 5, 7, 7, 8, 10, 3, 11, 13)),
    "16 leaves": Tree(tuple(range(16)), (0,) * 16),
}


def build(dtype: torch.dtype, context: int, rows: int) -> tuple[list[Any], Tensor]:
    """Layers with caches full of noise, and the blocks [1, n] of one request in them."""
    from vllm.v1.attention.backends import cpu_attn

    from ..tree.cpu_attention import enable

    config = SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))
    cpu_attn.get_current_vllm_config = lambda: config
    isa = cpu_attn._get_attn_isa(dtype, BLOCK, HEAD_DIM)
    blocks = -(-(context + rows) // BLOCK)
    shape = (blocks + 4, KV_HEADS, BLOCK, 2 * HEAD_DIM)
    allocation = torch.randn(prod(shape) * LAYERS + prod(shape[1:]) * ROOM).to(dtype)
    caches = allocation[: prod(shape) * LAYERS].view(LAYERS, *shape)
    layers = [
        SimpleNamespace(
            impl=cpu_attn.CPUAttentionBackendImpl(HEADS, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, None, None, "auto"),
            kv_cache=cache,
            isa=isa,
            dtype=dtype,
            _k_scale_float=1.0,
            _v_scale_float=1.0,
        )
        for cache in caches
    ]
    enable(layers, prod(shape[1:]) * ROOM * dtype.itemsize)
    return layers, torch.randperm(blocks + 3)[None, :blocks].int() + 1


def step(layers: list[Any], blocks: Tensor, context: int, tree: Tree | None) -> Callable[[], float]:
    """A function that runs all layers once and returns the seconds that one took; no tree: the stock kernel."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

    rows = 17
    dtype, isa = layers[0].dtype, layers[0].isa
    starts, lengths = torch.tensor([0, rows], dtype=torch.int32), torch.tensor([context + rows], dtype=torch.int32)
    query = torch.randn(rows, HEADS, HEAD_DIM).to(dtype)
    output = torch.empty_like(query)
    key, value = (torch.randn(rows, KV_HEADS, HEAD_DIM).to(dtype) for _ in range(2))

    def run() -> float:
        begun = time.perf_counter()
        schedule = ops.cpu_attn_get_scheduler_metadata(
            1, HEADS, KV_HEADS, HEAD_DIM, lengths, dtype, starts, True, -1, isa, True
        )
        metadata = CPUAttentionMetadata(rows, rows, starts, context + rows, lengths, blocks, torch.empty(0), schedule)
        if tree is not None:
            visible, depths = torch.from_numpy(tree.ancestors), torch.from_numpy(tree.depths)
            attach(metadata, [MaskedRows(0, 0, context, visible, depths)], whole_batch=True)
        for layer in layers:
            layer.impl.forward(layer, query, key, value, layer.kv_cache, metadata, output)
        return (time.perf_counter() - begun) / LAYERS

    return run


def main(
    threads: Annotated[int, typer.Option(help="Threads the kernels use.")] = 1,
    rounds: Annotated[int, typer.Option(help="Turns that each case takes.")] = 15,
) -> None:
    """Print the table of ratios."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    torch.set_num_threads(threads)
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
    table = Table("dtype", "layout", "context", "stock chain, µs", *(f"{name}, µs (ratio)" for name in TREES))
    for dtype in (torch.bfloat16, torch.float32):
        for context in CONTEXTS:
            layers, blocks = build(dtype, context, 17)
            cases = {name: step(layers, blocks, context, tree) for name, tree in ({"stock": None} | TREES).items()}
            for run in cases.values():
                run()
            turns = [{name: run() for name, run in cases.items()} for _ in range(rounds)]
            fastest = {name: min(turn[name] for turn in turns) * 1e6 for name in cases}
            stock = fastest.pop("stock")
            cells = [f"{time:.0f} ({time / stock:.2f})" for time in fastest.values()]
            table.add_row(str(dtype).removeprefix("torch."), layers[0].isa, str(context), f"{stock:.0f}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    run_function(main)
