"""Room behind the KV caches, in the allocation that vLLM makes."""

from __future__ import annotations

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheLayout, KVCacheTensor
from vllm.v1.worker.utils import allocate_kv_cache

from vllm_eagle_plugin.tree.attention.room import room_behind, with_room

BLOCKS = 10


def config(kv_heads: dict[str, int]) -> KVCacheConfig:
    """Caches of fp32 layers with so many heads each, one behind the other, as vLLM lays them out on a CPU."""
    specs = {
        n: FullAttentionSpec(block_size=32, num_kv_heads=k, head_size=64, dtype=torch.float32)
        for n, k in kv_heads.items()
    }
    size = sum(s.page_size_bytes for s in specs.values()) * BLOCKS
    tensors, offset = [], 0
    for name, spec in specs.items():
        page = spec.page_size_bytes
        tensors.append(KVCacheTensor(size, [name], page * BLOCKS, page, offset))
        offset += page * BLOCKS
    return KVCacheConfig(BLOCKS, tensors, [KVCacheGroupSpec([n], s) for n, s in specs.items()])


@pytest.mark.parametrize("heads", [{"a": 3, "b": 3, "c": 3}, {"a": 3, "b": 2, "c": 5, "d": 1}])
def test_room_is_behind_every_cache(heads: dict[str, int]) -> None:
    stock = config(heads)
    longer, size = with_room(stock, 4)
    assert stock == config(heads)
    caches = allocate_kv_cache(longer, torch.device("cpu"), KVCacheLayout.LBHNC, [32] * len(heads))
    assert {n: c.shape for n, c in caches.items()} == {n: (BLOCKS, k, 32, 128) for n, k in heads.items()}
    caches = {n: c.view(torch.float32) for n, c in caches.items()}
    rooms = {n: room_behind(c, size) for n, c in caches.items()}
    for cache in caches.values():
        cache.fill_(1.0)
    for name, room in rooms.items():
        assert len(room.own) >= 4
        assert room.both[room.first :].data_ptr() == room.own.data_ptr()
        assert torch.equal(room.both[:BLOCKS], caches[name])
        room.own.fill_(2.0)
    assert all((cache == 1.0).all() for cache in caches.values())


def test_no_room_is_an_error() -> None:
    caches = allocate_kv_cache(config({"a": 3}), torch.device("cpu"), KVCacheLayout.LBHNC, [32])
    with pytest.raises(ValueError, match="behind 10 blocks"):
        room_behind(caches["a"], caches["a"][0].nbytes)
