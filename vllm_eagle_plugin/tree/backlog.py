"""Tokens that a head with attention has not read yet, because nothing was to be drafted from them.

While drafting does not pay, a head costs nothing only if it is not run at all; but to draft again it needs the
keys and values of every token since. They are made up for in one pass, many tokens at a time.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata


@dataclass(frozen=True)
class Unread:
    """Tokens [n] of a request from a position on, and the target's hidden states [n, H] there."""

    tokens: list[int]
    first: int
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.first + len(self)

    @classmethod
    def joined(cls, parts: Sequence[Unread]) -> Unread:
        """Parts that follow one another."""
        return cls([t for part in parts for t in part.tokens], parts[0].first, torch.cat([p.hidden for p in parts]))


class Backlog:
    """What each request's head has yet to read."""

    #: Additions after which a request's are copied to one: until then they may be views of a whole step's states,
    #: which a request that sleeps for long must not keep alive.
    PACKED = 16

    def __init__(self) -> None:
        self._unread: dict[str, list[Unread]] = {}
        self._views: dict[str, int] = {}
        self.rows = 0

    def add(self, request: str, unread: Unread) -> None:
        """Its states may be a view, of what nobody writes to."""
        own, views = self._unread.setdefault(request, []), self._views.get(request, 0) + 1
        own.append(unread)
        self.rows += len(unread)
        if views == self.PACKED:
            own[-views:], views = [Unread.joined(own[-views:])], 0
        self._views[request] = views

    def drop(self, request: str) -> None:
        self.rows -= sum(map(len, self._unread.pop(request, ())))
        self._views.pop(request, None)

    def ends(self, request: str) -> int | None:
        """The position behind the last token that a request's head has missed, if any."""
        own = self._unread.get(request)
        return own[-1].end if own else None

    def take(
        self, requests: list[str], block_size: int, inputs: dict[str, Any], asleep: Container[str] = ()
    ) -> dict[str, Any] | None:
        """Inputs of a pass in front of the one that vLLM's `propose` was given `inputs` for, or None.

        Empties the backlog of these requests, but for those `asleep`. What does not join up with a request's rows (it was preempted,
        and reads all its tokens again) is left out.
        """
        common: CommonAttentionMetadata = inputs["common_attn_metadata"]
        starts = common.query_start_loc_cpu.tolist()
        chosen: list[int] = []
        unread: list[Unread] = []
        for index, request in enumerate(requests):
            own = [] if request in asleep else self._unread.get(request, [])
            if own and own[-1].end == int(inputs["target_positions"][starts[index]]):
                chosen.append(index)
                unread.append(Unread.joined(own))
        for request in requests:
            if request not in asleep:
                self.drop(request)
        return _pass(unread, chosen, [starts[i] for i in chosen], block_size, inputs) if chosen else None


def _pass(
    unread: list[Unread], chosen: list[int], starts: list[int], block_size: int, inputs: dict[str, Any]
) -> dict[str, Any]:
    """A pass over `unread` of the requests `chosen`, whose rows in `inputs` start at `starts`."""
    common: CommonAttentionMetadata = inputs["common_attn_metadata"]
    blocks, ids = common.block_table_tensor[chosen], inputs["target_token_ids"]
    counts = torch.tensor([len(u) for u in unread])
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    positions = torch.cat([torch.arange(u.first, u.end) for u in unread]).to(inputs["target_positions"])
    owners = torch.arange(len(unread)).repeat_interleave(counts).to(blocks.device)
    lengths = torch.tensor([u.end for u in unread], dtype=torch.int32)
    metadata = CommonAttentionMetadata(
        query_start_loc=bounds.to(blocks.device),
        query_start_loc_cpu=bounds,
        seq_lens=lengths.to(blocks.device),
        num_reqs=len(unread),
        num_actual_tokens=len(positions),
        max_query_len=int(counts.max()),
        max_seq_len=int(lengths.max()),
        block_table_tensor=blocks,
        slot_mapping=blocks[owners, positions // block_size].long() * block_size + positions % block_size,
    )
    return {
        **inputs,
        "target_token_ids": torch.tensor([t for u in unread for t in u.tokens]).to(ids),
        "target_positions": positions,
        "target_hidden_states": torch.cat([u.hidden for u in unread]),
        # What a head reads at the last of them: the first token of this step.
        "next_token_ids": ids[starts],
        "token_indices_to_sample": None,
        "num_rejected_tokens_gpu": None,
        "common_attn_metadata": metadata,
    }
