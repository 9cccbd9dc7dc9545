"""The model runner that verifies trees: mixed into vLLM's V1 runner.

The scheduler counts only how many tokens come out of a step. So within a step node i of a tree keeps the KV slot
behind its request's tokens that a chain's i-th draft would have, but takes the position of its depth and sees
only its ancestors; once it is known which nodes are accepted, their keys, values, hidden states and ids are
moved to the front and positions made linear again. Everything behind that is an ordinary chain step.

vLLM's V1 runner hands drafts around as Python lists: they become tensors in `_prepare_inputs`, and lists again where
the drafter returns them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors

from ..compat.tree_runner import require_attributes
from ..errors import HeadError
from . import WORKER, observe
from .attention import Attention as TreeAttention
from .attention import Tail, attach, attention_for, enable_layers, verifying
from .attention.room import with_room
from .attention.switch import Switch
from .compact import Moves, linear, move, moves, rows, slots
from .config import Drafting, example, parse_drafting
from .coupling import Coupled, Coupling
from .pauses_v1 import PausingRunner
from .plan import draws_plainly
from .trees import Trees
from .walk import Paths
from .walk_v1 import Step, walk


class TreeRunner(PausingRunner):
    """Mixin over `GPUModelRunner`; see the module."""

    _draft_token_ids: Any
    _attention: TreeAttention

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        speculative = vllm_config.speculative_config
        drafting = parse_drafting(vllm_config.additional_config, speculative.num_speculative_tokens)
        assert drafting is not None  # the worker asks for this runner only then
        self.drafting: Drafting = drafting
        #: Of each request's last proposal: what was drafted, and the node that each draft continues.
        self.proposed: dict[str, tuple[list[int], list[int]]] = {}
        self._step: Step | None = None
        #: The target's layers, where trees are drafted.
        self._masking = Switch(())
        #: What sampled requests draw; None where drafts are made without it.
        self.coupling: Coupling | None = None
        super().__init__(vllm_config, device)
        require_attributes(self)
        # Under speculation vLLM leaves out those that its rejection sampler lacks; the plain sampler has them all.
        self.input_batch.logitsprocs = LogitsProcessors(
            processor(vllm_config, device, device.type == "cuda") for processor in BUILTIN_LOGITS_PROCESSORS
        )

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        shape, config = self.drafting.shape, self.vllm_config.model_config
        if shape.kind == "chain":
            super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
            return  # all attention is the stock kernel's, called as vLLM calls it
        self._attention, room = attention_for(self.device), 0
        if self._attention.ROOM:
            kv_cache_config, room = with_room(kv_cache_config, self._attention.ROOM)
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        if shape.coupled:
            self.coupling = Coupling.with_sampler(self.sampler, config.get_vocab_size(), self.device, config.seed or 0)
        layers = get_layers_from_vllm_config(self.vllm_config, Attention)
        if reason := enable_layers(self._attention, layers, room, self.cache_config.block_size):
            self.drafter.planner.fall_back(f"attention: {reason}")
        else:
            self._masking = Switch(layer for name, layer in layers.items() if name not in self._drafting_layers())

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        self._step = self._scheduled(scheduler_output.scheduled_spec_decode_tokens, num_scheduled_tokens)
        if self._step is not None:
            self._set_positions(self._step, self._step.trees.positions(self._step.base))
        return prepared

    def _scheduled(self, scheduled: dict[str, list[int]], num_scheduled_tokens: np.ndarray) -> Step | None:
        """What is verified of what was proposed; None: nothing."""
        requests = self.input_batch.req_ids
        drafts = [scheduled.get(request) or [] for request in requests]
        lengths = np.array([len(d) for d in drafts])
        if not (most := lengths.max(initial=0)):
            return None
        tokens = np.zeros((2, len(drafts), most), dtype=np.int64)
        tokens[1] = np.arange(most)
        for row, (request, drafted) in enumerate(zip(requests, drafts, strict=True)):
            tokens[0, row, : len(drafted)] = drafted
            proposed, parents = self.proposed.get(request, ([], []))
            # The scheduler may have cut the proposal short, or (close to the longest length) made its own: a chain.
            if drafted and proposed[: len(drafted)] == drafted:
                tokens[1, row, : len(drafted)] = parents[: len(drafted)]
        device, batch = self.positions.device, len(drafts)
        ends = self.query_start_loc.np[1 : batch + 1]
        base = self.input_batch.num_computed_tokens_cpu[:batch] + num_scheduled_tokens[:batch]
        numbers = (lengths, ends - lengths - 1, base - lengths - 1)
        counts, first, base = (torch.from_numpy(n.astype(np.int64)).to(device) for n in numbers)
        drafted, parents = torch.from_numpy(tokens).to(device)
        return Step(Trees.of(drafted, parents, counts), first, base)

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        metadata, common = super()._build_attention_metadata(*args, **kwargs)
        tail = self._tail()
        self._masking.turn(tail is not None)
        if tail is not None:
            for group in {id(m): m for m in metadata.values()}.values():
                attach(group, tail)
        return metadata, common

    def _tail(self) -> Tail | None:
        """The rows of trees that are no chains; a chain's are the stock kernel's."""
        if self._step is None:
            return None
        trees, first, base = self._step
        counts = (trees.counts + 1).where(~trees.chains, 0)
        return verifying(trees, base, first, counts) if counts.any() else None

    def sample_tokens(self, grammar_output: Any) -> Any:
        held = self._hold_generators()
        try:
            return super().sample_tokens(grammar_output)
        finally:
            self.input_batch.generators.update(held)
            self._step = None

    def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        metadata, requests, step = self.input_batch.sampling_metadata, self.input_batch.req_ids, self._step
        if observe.observers:
            observe.verified(requests, step, logits)
        metadata = replace(metadata, generators=self._generators())
        if step is None:
            output = self.sampler(logits=logits, sampling_metadata=metadata)
            nodes = depths = [0] * len(requests)
            self.sampled = [1] * len(requests)
        else:
            output, paths = walk(self.sampler, logits, metadata, step, self._takes_argmax(metadata))
            self.sampled = paths.counts.tolist()
            nodes = step.trees.counts.tolist()
            depths = step.trees.depths.where(step.trees.used, 0).amax(-1).tolist()
            self._relinearise(step, paths)
        for index, request in enumerate(requests):
            if not self.discard_request_mask.np[index]:
                self.drafter.planner.verified(request, nodes[index], depths[index], self.sampled[index] - 1)
        return output

    def coupled(self, ids: Tensor | None) -> Coupled:
        """What adds the sampler's noise to the head's logits in this step; `ids` as there."""
        batch = self.input_batch
        generators = self._generators() if self.coupling is not None else {}
        return Coupled(self.coupling, batch.req_ids, batch.temperature_cpu.tolist(), generators, ids)

    def _generators(self) -> dict[int, torch.Generator]:
        """What the step's requests draw from, by their index in the batch."""
        batch = self.input_batch
        return self.coupling.generators(batch, self.discard_request_mask.np) if self.coupling else batch.generators

    def _hold_generators(self) -> dict[int, torch.Generator]:
        """Take the generators of seeded requests that still read their prompt out of the batch; returns them.

        What is sampled for those is thrown away. vLLM draws it all the same and winds the generator back, which no
        CPU generator can do: it raises, and the engine is gone.
        """
        generators = self.input_batch.generators  # the very dict that the sampling metadata hold
        discarded = self.discard_request_mask.np
        return {index: generators.pop(index) for index in [*generators] if discarded[index]}

    def _takes_argmax(self, metadata: Any) -> bool:
        return metadata.all_greedy and all(
            draws_plainly(self.requests[request].sampling_params) for request in self.input_batch.req_ids
        )

    def _set_positions(self, step: Step, positions: Tensor) -> None:
        """Give the roots and nodes of a step these positions [B, N + 1]."""
        used = step.in_use
        self.positions[step.rows[used]] = positions[used].to(self.positions.dtype)

    def _relinearise(self, step: Step, paths: Paths) -> None:
        """Make every request's accepted path its first rows: ids, hidden states, keys and values."""
        self._set_positions(step, linear(step.base, step.trees.tokens.shape[1]))
        moved = moves(paths)
        real = (moved.source != moved.destination).flatten()
        if not real.any():
            return
        moved_rows = Moves(*(r[real] for r in rows(moved, step.first)))
        move(self.input_ids.gpu, moved_rows)
        self._move_states(moved_rows)
        layers, drafting = self.compilation_config.static_forward_context, self._drafting_layers()
        for group, described in enumerate(self.kv_cache_config.kv_cache_groups):
            table = self.input_batch.block_table[group]
            blocks = table.get_device_tensor(self.input_batch.num_reqs)
            source, destination = (s[real] for s in slots(moved, step.base, blocks, table.block_size))
            # The head needs none of this: its next pass writes what was accepted anew.
            caches = {layers[n].kv_cache.data_ptr(): layers[n] for n in described.layer_names if n not in drafting}
            self._attention.move_slots(caches.values(), source, destination)

    def _move_states(self, moved: Moves) -> None:
        """Move rows of the hidden states that the head reads next."""
        states = [self._state.hidden_states, *(self._state.aux_hidden_states or ())]
        for each in {t.data_ptr(): t for t in states}.values():
            move(each, moved)

    def _drafting_layers(self) -> set[str]:
        """The attention layers that are the head's."""
        return set(getattr(self.drafter, "_draft_attn_layer_names", ()))

    def _update_states(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.finished_req_ids:
            self.proposed.pop(request, None)
            self.drafter.forget(request)
            if self.coupling is not None:
                self.coupling.forget(request)
        return super()._update_states(scheduler_output)


def require_runner(runner: Any) -> TreeRunner:
    """The tree runner that a proposer was made by.

    Raises:
        HeadError: it is another, since the worker is another.
    """
    if not isinstance(runner, TreeRunner):
        raise HeadError(
            f"draft trees were asked for, but the model runner is {type(runner).__name__}",
            f"The worker {WORKER} makes the one that verifies trees",
            example(16),
        )
    return runner
