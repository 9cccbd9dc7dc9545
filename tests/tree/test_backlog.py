"""What a head has yet to read: all of it, in its order, and no memory but its own."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from vllm_eagle_plugin.tree.backlog import Backlog, Unread

WIDTH, BLOCK = 6, 4


def a_step(position: int, requests: int) -> torch.Tensor:
    """States [requests, WIDTH] that say whose they are and where."""
    return torch.tensor([[100.0 * r + position] * WIDTH for r in range(requests)])


def inputs(requests: int, position: int) -> dict:
    """What vLLM's `propose` is given for one row of each request at this position."""
    starts = torch.arange(requests + 1, dtype=torch.int32)
    common = SimpleNamespace(
        query_start_loc_cpu=starts, block_table_tensor=torch.arange(requests * 30).view(requests, 30).int()
    )
    return {
        "common_attn_metadata": common,
        "target_positions": torch.full((requests,), position),
        "target_token_ids": torch.arange(requests) + 7,
        "target_hidden_states": a_step(position, requests),
    }


def test_everything_in_its_order() -> None:
    backlog, count = Backlog(), 2 * Backlog.PACKED + 5
    for position in range(3, 3 + count):
        states = a_step(position, 2)
        for request in range(2):
            backlog.add(str(request), Unread([10 * position + request], position, states[request : request + 1]))
    assert backlog.rows == 2 * count
    found = backlog.take(["0", "new", "1"], BLOCK, inputs(3, 3 + count))
    assert found is not None
    assert backlog.rows == 0
    positions = torch.arange(3, 3 + count)
    assert found["target_positions"].tolist() == positions.tolist() * 2
    assert found["target_token_ids"].tolist() == [10 * p + r for r in range(2) for p in positions.tolist()]
    assert found["target_hidden_states"][:, 0].tolist() == [100.0 * r + p for r in range(2) for p in positions.tolist()]
    assert found["next_token_ids"].tolist() == [7, 9], (
        "the first token of this step, of the requests that had missed any"
    )
    metadata = found["common_attn_metadata"]
    assert metadata.seq_lens.tolist() == [3 + count] * 2
    assert metadata.query_start_loc.tolist() == [0, count, 2 * count]
    slots = [[(30 * r + p // BLOCK) * BLOCK + p % BLOCK for p in positions.tolist()] for r in (0, 2)]
    assert metadata.slot_mapping.tolist() == slots[0] + slots[1]


def test_a_step_is_let_go_of() -> None:
    """A request that sleeps for long keeps few of the steps alive whose other requests have ended."""
    backlog = Backlog()
    for position in range(3 * Backlog.PACKED + 2):
        states = a_step(position, 32)
        backlog.add("long", Unread([1], position, states[:1]))
    kept = {part.hidden.untyped_storage().nbytes() for part in backlog._unread["long"]}
    whole = 32 * WIDTH * 4
    assert sum(part.hidden.untyped_storage().nbytes() == whole for part in backlog._unread["long"]) == 2
    assert kept == {whole, Backlog.PACKED * WIDTH * 4}


def test_what_does_not_join_up_is_left_out() -> None:
    """A request that was preempted reads all its tokens again."""
    backlog = Backlog()
    backlog.add("0", Unread([1, 2], 5, a_step(5, 2)))
    assert backlog.take(["0"], BLOCK, inputs(1, 0)) is None
    backlog.add("1", Unread([1], 5, a_step(5, 1)))
    backlog.drop("1")
    assert backlog.rows == 0
