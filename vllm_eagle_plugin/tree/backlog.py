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

    def postpone(self, runner: Any, state: Any, most: int) -> bool:
        """Take in the rows of a step of the tree runner's, from which nothing is drafted; `state` is the runner's.
        False: with them there would be more than the `most` rows of one pass, so that they must be read now."""
        if self.rows + sum(runner.sampled) > most:
            return False
        aux = state.aux_hidden_states if runner.use_aux_hidden_state_outputs else None
        starts = runner.query_start_loc.np.tolist()
        read = starts[len(runner.sampled)]
        hidden = torch.cat([states[:read] for states in aux or [state.hidden_states]], -1)
        ids, positions = runner.input_ids.gpu[:read].tolist(), runner.positions[:read].tolist()
        for request, start, sampled in zip(runner.input_batch.req_ids, starts, runner.sampled, strict=False):
            own = slice(start, start + sampled)
            self.add(request, Unread(ids[own], positions[start], hidden[own]))
        return True

    def asleep(
        self, requests: Sequence[str], levels: Sequence[int], inputs: dict[str, Any], most: int
    ) -> dict[str, Unread]:
        """Requests that may draft no level and have missed tokens already, and what they miss in the step of `inputs`:
        the head runs over that, but without what came before. None where there would be more than `most` rows."""
        starts, found = inputs["common_attn_metadata"].query_start_loc_cpu.tolist(), {}
        for index, (request, level) in enumerate(zip(requests, levels, strict=True)):
            row = starts[index]
            position = int(inputs["target_positions"][row])
            # More rows than one are of a prompt, read again after a preemption: that is read in full.
            if level == 0 and starts[index + 1] == row + 1 and self.ends(request) == position:
                token, hidden = int(inputs["target_token_ids"][row]), inputs["target_hidden_states"][row : row + 1]
                found[request] = Unread([token], position, hidden.clone())
        return found if self.rows + len(found) <= most else {}

    def take(
        self, requests: list[str], block_size: int, inputs: dict[str, Any], asleep: Container[str] = ()
    ) -> dict[str, Any] | None:
        """Inputs of a pass in front of the one that vLLM's `propose` was given `inputs` for, or None.

        Empties the backlog of these requests, but for those `asleep`. What does not join up with a request's rows (it
        was preempted, and reads all its tokens again) is left out.
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
