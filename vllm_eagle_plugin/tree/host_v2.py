"""The model runner that verifies trees, on Model Runner V2: mixed into vLLM's own. Nothing in a step waits for the
device.

The scheduler counts only how many tokens come out of a step. So within a step node i of a tree keeps the row and the
KV slot that a chain's i-th draft would have, but takes the position of its depth and sees only its ancestors; once it
is known which nodes are accepted, they are moved to the front and positions made linear again. Everything behind
that, the drafter too, sees an ordinary chain step.

What a CUDA graph of the target reads of trees stays where it was made here.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.worker.gpu.structured_outputs import grammar_invalid_drafts

from ..errors import HeadError
from .attention import Tail, attach, attention_for, verifying
from .attention.lead import Graphed, Lead, lead
from .compact import linear, move, moves, rows, slots
from .config import parse_drafting
from .trees import Trees
from .walk import Paths
from .walk_v2 import Step, verify

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as Base
else:
    Base = object


logger = logging.getLogger("vllm.eagle_plugin")


class TreeRunnerV2(Base):
    """Mixin over V2's `GPUModelRunner`; see the module. Its speculator is one of `draft_v2`."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        drafting = parse_drafting(vllm_config.additional_config, vllm_config.num_speculative_tokens)
        assert drafting is not None  # the worker asks for this runner only then
        self.depth = drafting.shape.depth
        if drafting.adaptive is not None:
            nodes = drafting.shape.nodes
            logger.info("On Model Runner V2 trees do not size themselves yet: each step drafts %d nodes.", nodes)
        self.step: Step | None = None
        self._aux: list[Tensor] = []
        super().__init__(vllm_config, device)
        requests, width = self.max_num_reqs, self.num_speculative_steps + 1

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.tail = Tail(numbers(requests, width), numbers(requests), numbers(requests), numbers(requests), -1)
        #: Requests whose drafts a grammar follows as one sequence, by their slots.
        self._chains = np.zeros(requests, dtype=bool)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        # Their noise has no key: what a request draws would depend on the batch, and on what was drafted.
        self.sampler.use_flashinfer = self.sampler.use_xpu_sampler = False

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        attention, room = attention_for(self.device), 0
        if attention.ROOM:
            from .attention.room import with_room

            kv_cache_config, room = with_room(kv_cache_config, attention.ROOM)
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        layers = get_layers_from_vllm_config(self.vllm_config, Attention)
        reasons = {name: r for name, layer in layers.items() if (r := attention.unsupported(layer))}
        for group in (group for groups in self.attn_groups for group in groups):
            if getattr(group, "kernel_block_size", None) is not None:
                size, own = group.kv_cache_spec.block_size, group.kernel_block_size
                reasons |= dict.fromkeys(group.layer_names, f"its blocks of {size} keys are read as blocks of {own}")
        for name, reason in reasons.items():
            raise HeadError(
                f"draft trees, with {len(reasons)} attention layers that cannot carry them: of {name}, {reason}",
                "Every layer's attention must heed a mask",
                "Choose another --attention-backend, or leave the additional config's `eagle` out to draft chains",
            )
        attention.enable(layers.values(), room)
        self._move_slots = attention.move_slots
        drafting, groups = self.speculator.draft_attn_layer_names, self.kv_cache_config.kv_cache_groups
        self._target_layers = {name: layer for name, layer in layers.items() if name not in drafting}
        self._group_of = {name: number for number, group in enumerate(groups) for name in group.layer_names}
        self._graphed = {
            self._group_of[name]: Graphed(
                layer, self.vllm_config, self.block_tables.block_sizes[self._group_of[name]], self.device
            )
            for name, layer in self._target_layers.items()
        }
        stock = self.model_state.prepare_attn

        def prepare_attn(batch: Any, mode: CUDAGraphMode, *rest: Any, **kwargs: Any) -> dict[str, Any]:
            metadata = stock(batch, mode, *rest, **kwargs)
            capturing = kwargs.get("for_capture", False)
            tail = self._capturing(batch) if capturing else self._tail(batch, mode)
            return metadata if tail is None else self._masked(metadata, tail, batch, mode)

        self.model_state.prepare_attn = prepare_attn

    def add_requests(self, scheduler_output: Any) -> None:
        super().add_requests(scheduler_output)
        for request in scheduler_output.scheduled_new_reqs:
            params = request.sampling_params
            slot = self.req_states.req_id_to_index[request.req_id]
            self._chains[slot] = params is not None and params.structured_outputs is not None

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        self.step = None
        return super().execute_model(*args, **kwargs)

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        batch = super().prepare_inputs(*args, **kwargs)
        drafts = batch.num_draft_tokens_per_req
        most = 0 if drafts is None else int(drafts.max())
        if most:
            self.step = self._scheduled(batch, most)
        return batch

    def _scheduled(self, batch: Any, most: int) -> Step:
        """What is verified in this step, in which no request has more than so many drafts."""
        slot, ends = batch.idx_mapping, batch.query_start_loc[1 : batch.num_reqs + 1].long()
        logit = batch.cu_num_logits.long()
        scheduled = logit.diff() - 1
        base = batch.seq_lens[: batch.num_reqs].long() - scheduled - 1
        # Behind the end of a prompt that is still read, drafts are placeholders.
        drafted = base >= self.req_states.prefill_len.gpu[slot]
        scheduled = scheduled.where(drafted, 0)
        trees = Trees.of(
            self.req_states.draft_tokens[slot, :most].clamp(min=0),
            self.speculator.parents[slot, :most],
            scheduled.minimum(self.speculator.counts[slot]),
            self.depth,
        )
        return Step(trees, ends - logit.diff(), base, logit[:-1], scheduled)

    def prepare_attn(self, input_batch: Any) -> Any:
        prepared = super().prepare_attn(input_batch)  # slots follow from linear positions: first
        if self.step is not None:
            self._set_positions(input_batch, self.step, self.step.trees.positions(self.step.base))
        return prepared

    def _set_positions(self, batch: Any, step: Step, positions: Tensor) -> None:
        """Give the roots and nodes of a step these positions [B, N + 1]."""
        at = step.rows()
        there = at > step.first[:, None]
        values = positions.where(there, step.base[:, None]).to(batch.positions.dtype)
        batch.positions.index_copy_(0, at.flatten(), values.flatten())

    def _tail(self, batch: Any, mode: CUDAGraphMode) -> Tail | None:
        """The rows of the step's trees."""
        step = self.step
        if step is None:
            return None
        count = (step.scheduled + 1).where(step.scheduled > 0, 0)
        tail = verifying(step.trees, step.base, step.first, count)
        if mode != CUDAGraphMode.FULL:
            return tail
        requests, width = tail.seen.shape
        kept = self._kept(batch.num_reqs_after_padding, width)
        for own, new in zip(kept[:4], tail[:4], strict=True):
            own[:requests] = new
            own[requests:] = 0
        return kept

    def _capturing(self, batch: Any) -> Tail | None:
        """What a graph reads whose requests all have this batch's number of rows."""
        width = batch.num_tokens // batch.num_reqs
        if not 1 < width <= self.num_speculative_steps + 1:
            return None
        kept = self._kept(batch.num_reqs, width)
        kept.first.copy_(torch.arange(batch.num_reqs) * width)
        kept.context.fill_(1)
        kept.counts.fill_(width)
        return kept

    def _kept(self, requests: int, width: int) -> Tail:
        tail = self.tail
        return Tail(
            tail.seen[:requests, :width], tail.context[:requests], tail.counts[:requests], tail.first[:requests], -1
        )

    def _masked(self, metadata: dict[str, Any], tail: Tail, batch: Any, mode: CUDAGraphMode) -> dict[str, Any]:
        """The metadata with the tail for the target's layers alone: the head reads the step's tokens as a chain."""
        masked = {name: metadata[name] for name in self._target_layers if name in metadata}
        # Layers that share metadata are of one KV cache group.
        copies = {id(group): (copy.copy(group), self._group_of[name]) for name, group in masked.items()}
        requests, graphed = len(tail.seen), mode == CUDAGraphMode.FULL
        leads: dict[int, Lead | None] = {}
        for group, number in copies.values():
            attach(group, tail)
            if number not in leads:
                starts = batch.query_start_loc[: requests + 1]
                leads[number] = self._graphed[number](tail, starts) if graphed else self._lead(batch, tail)
            lead(group, leads[number], self.block_tables.input_block_tables[number][:requests])
        return metadata | {name: copies[id(group)][0] for name, group in masked.items()}

    def _lead(self, batch: Any, tail: Tail) -> Lead | None:
        """The trees in front of a pass that is no CUDA graph; None: others stand between them."""
        drafts, rows = batch.num_draft_tokens_per_req, batch.num_scheduled_tokens
        verifying = (drafts > 0) & ~batch.is_prefilling_np
        count = int(verifying.sum())
        if not count or not verifying[:count].all() or (rows != drafts + 1)[:count].any():
            return None
        return Lead(
            batch.query_start_loc[: count + 1],
            tail.context[:count].int(),
            int(rows[:count].sum()),
            tail.seen.shape[1],
            int(batch.seq_lens_cpu_upper_bound[:count].max()),
            count == batch.num_reqs,
        )

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        state = self.execute_model_state
        if state is not None:
            self._aux = state.aux_hidden_states or []
            if state.input_batch.has_structured_output_reqs:
                self.speculator.draft_chains(self._chains[state.input_batch.idx_mapping_np])
        try:
            return super().sample_tokens(*args, **kwargs)
        finally:
            self._aux, self.step = [], None

    def sample(self, hidden_states: Tensor, input_batch: Any, grammar_output: Any) -> Any:
        step = self.step
        if step is None:
            return super().sample(hidden_states, input_batch, grammar_output)
        logits = self.model.compute_logits(hidden_states[input_batch.logits_indices])
        if grammar_output is not None:
            requests = grammar_output.structured_output_request_ids
            self.structured_outputs_worker.apply_grammar_bitmask(
                logits, input_batch, requests, grammar_output.grammar_bitmask
            )
            invalid = grammar_invalid_drafts(input_batch, requests, grammar_output.num_acceptable_drafts)
            if invalid is not None:
                step = _without(step, invalid)
        output, paths = verify(self.sampler, logits, input_batch, step, self.depth)
        self._relinearise(hidden_states, input_batch, step, paths)
        return output, output.num_sampled, output.num_rejected

    def _relinearise(self, hidden: Tensor, batch: Any, step: Step, paths: Paths) -> None:
        """Make every request's accepted path its first rows: ids, hidden states, keys and values."""
        self._set_positions(batch, step, linear(step.base, step.trees.tokens.shape[1]))
        moved = moves(paths)
        moved_rows = rows(moved, step.first)
        for states in (hidden, batch.input_ids, *self._aux):
            move(states, moved_rows)
        for number in self._graphed:
            layers = [
                layer
                for name, layer in self._target_layers.items()
                if self._group_of[name] == number and layer.kv_sharing_target_layer_name is None
            ]
            if layers:
                blocks = self.block_tables.input_block_tables[number][: batch.num_reqs]
                moved_slots = slots(moved, step.base, blocks, self.block_tables.block_sizes[number])
                self._move_slots(layers, moved_slots.source, moved_slots.destination)


def _without(step: Step, invalid: Tensor) -> Step:
    """The step without the drafts of a grammar's requests, chains all, behind the first that is invalid by its row
    among the logits."""
    nodes = torch.arange(1, step.trees.tokens.shape[1] + 1, device=invalid.device)
    bad = invalid[step.logit[:, None] + nodes * (nodes <= step.scheduled[:, None])] & (nodes <= step.scheduled[:, None])
    return step._replace(trees=step.trees.first((~bad).long().cumprod(1).sum(1)))
