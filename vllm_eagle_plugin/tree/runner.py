"""The model runner that verifies trees: mixed into vLLM's V1 runner.

The scheduler counts only how many tokens come out of a step. So within a step node i of a tree keeps the KV slot
behind its request's tokens that a chain's i-th draft would have, but takes the position of its depth and sees
only its ancestors; once it is known which nodes are accepted, their keys, values, hidden states and ids are
moved to the front and positions made linear again. Everything behind that is an ordinary chain step.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import CUDAGraphMode, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.sample.logits_processor import BUILTIN_LOGITS_PROCESSORS, LogitsProcessors
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from ..compat.sampler_noise import foretold
from ..compat.tree_runner import require_attributes
from ..errors import HeadError
from . import WORKER, observe
from .backend import backend
from .clock import Clock
from .config import Drafting, example, parse_drafting
from .coupling import Coupled, Coupling
from .old_attention import MaskedRows, attach
from .requests import draws_plainly
from .room import with_room
from .switch import Switch
from .tree import Tree
from .verify import walk

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Base
else:
    Base = object

logger = logging.getLogger("vllm.eagle_plugin")


@dataclass(frozen=True)
class ScheduledTree:
    """A request's tree in the step that runs."""

    #: Index of the request in the batch, and its root's row among the step's tokens.
    index: int
    row: int
    #: Position of the root.
    base: int
    tree: Tree


class TreeRunner(Base):
    """Mixin over `GPUModelRunner`; see the module. `trees` holds what each request proposed last."""

    _draft_token_ids: Any

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        speculative = vllm_config.speculative_config
        drafting = parse_drafting(vllm_config.additional_config, speculative.num_speculative_tokens)
        assert drafting is not None  # the worker asks for this runner only then
        self.drafting: Drafting = drafting
        self.trees: dict[str, Tree] = {}
        #: Tokens that the step's sampling gave each request of the batch.
        self.sampled: list[int] = []
        self._scheduled: list[ScheduledTree] = []
        self._state: Any = None
        #: No request of the step reads a prompt: each has its last token and its drafts in it.
        self._decodes = False
        #: What describes a step that verifies nothing, by requests.
        self._undrafted: dict[int, SpecDecodeMetadata] = {}
        #: The target's layers, where trees are drafted.
        self._masking = Switch(())
        #: What sampled requests draw; None where drafts are made without it.
        self.coupling: Coupling | None = None
        self.clock = Clock(vllm_config.parallel_config.tensor_parallel_size == 1)
        super().__init__(vllm_config, device)
        require_attributes(self)
        # Under speculation vLLM leaves out those that its rejection sampler lacks; the plain sampler has them all.
        self.input_batch.logitsprocs = LogitsProcessors(
            processor(vllm_config, device, device.type == "cuda") for processor in BUILTIN_LOGITS_PROCESSORS
        )

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        attention, room = backend(self.device), 0
        trees = self.drafting.shape.kind != "chain"
        if trees and attention.room:
            kv_cache_config, room = with_room(kv_cache_config, attention.room)
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)
        self._move_slots = attention.move_slots
        if not trees:
            return  # all attention is the stock kernel's, called as vLLM calls it
        self.coupling = self._coupling() if self.drafting.shape.coupled else None
        layers = get_layers_from_vllm_config(self.vllm_config, Attention)
        reasons = {name: reason for name, layer in layers.items() if (reason := attention.unsupported(layer))}
        if reasons:
            name, reason = next(iter(reasons.items()))
            logger.warning("Drafting chains, not trees: %s (%d layers, such as %s).", reason, len(reasons), name)
            self.drafter.planner.fall_back(f"attention: {reason}")
        else:
            attention.enable(layers.values(), room)
            self._masking = Switch(layer for name, layer in layers.items() if name not in self._drafting_layers())
            small = attention.small_blocks
            if small and self.cache_config.block_size > small:
                logger.info("Each branch of a tree copies a block of keys: --block-size %d makes trees faster.", small)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        self._scheduled = []
        starts, computed = self.query_start_loc.np, self.input_batch.num_computed_tokens_cpu
        for index, request in enumerate(self.input_batch.req_ids):
            drafts = tuple(scheduler_output.scheduled_spec_decode_tokens.get(request, ()))
            if not drafts:
                continue
            tree = self.trees.get(request)
            # The scheduler may have cut the proposal short, or (close to the longest length) made its own.
            tree = tree.first(len(drafts)) if tree is not None and len(tree) >= len(drafts) else None
            if tree is None or tree.tokens != drafts:
                tree = Tree.chain(drafts)
            row = int(starts[index + 1]) - len(drafts) - 1
            base = int(computed[index]) + int(num_scheduled_tokens[index]) - len(drafts) - 1
            scheduled = ScheduledTree(index, row, base, tree)
            self._scheduled.append(scheduled)
            if not tree.is_chain:
                self._set_positions(scheduled, tree.depths)
        return prepared

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        metadata, common = super()._build_attention_metadata(*args, **kwargs)
        rows = [
            MaskedRows(s.index, s.row, s.base, torch.from_numpy(s.tree.ancestors), torch.from_numpy(s.tree.depths))
            for s in self._scheduled
            if not s.tree.is_chain
        ]
        self._masking.turn(bool(rows))
        if rows:
            whole = len(rows) >= self.input_batch.num_reqs  # none are in it while costs are measured
            for group in {id(m): m for m in metadata.values()}.values():
                attach(group, rows, whole_batch=whole)
        return metadata, common

    def run_without_request(self, tree: Tree, context: int) -> None:
        """The forward pass that verifies a tree behind a context of nothing in particular; to measure what it costs.

        The drafter runs too, as it does in all of vLLM's dummy runs. Nothing is written to the KV cache.
        """
        self._scheduled = [ScheduledTree(0, 0, context, tree)]
        rows = len(tree) + 1
        try:
            self._dummy_run(
                rows,
                cudagraph_runtime_mode=CUDAGraphMode.NONE,
                force_attention=True,
                uniform_decode=True,
                profile_seq_lens=context + rows,
            )
        finally:
            self._scheduled = []

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.start_step()
        return super().execute_model(*args, **kwargs)

    def sample_tokens(self, grammar_output: Any) -> Any:
        self._state = self.execute_model_state
        branches = sum(s.tree.branches for s in self._scheduled)
        drafts = sum(len(s.tree) for s in self._scheduled)
        rows = self.input_batch.num_reqs + drafts
        self._decodes = self._state is not None and self._only_decodes()
        self.clock.heed(self._decodes)
        held = self._hold_generators()
        try:
            output = super().sample_tokens(grammar_output)
            self.clock.observe_step(self.drafter.planner.costs, drafts, rows, branches)
        finally:
            self.input_batch.generators.update(held)
            self._state, self._scheduled = None, []
        return output

    def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        metadata, requests = self.input_batch.sampling_metadata, self.input_batch.req_ids
        trees: list[Tree | None] = [None] * len(requests)
        for scheduled in self._scheduled:
            trees[scheduled.index] = scheduled.tree
        if observe.observers:
            observe.verified(requests, trees, logits)
        metadata = replace(metadata, generators=self._generators())
        walked = walk(self.sampler, logits, metadata, trees, greedy=self._takes_argmax(metadata))
        for index, request in enumerate(requests):
            if not self.discard_request_mask.np[index]:
                self.drafter.planner.verified(request, trees[index], walked.paths[index])
        self.sampled = [len(path) + 1 for path in walked.paths]
        self._relinearise(walked.paths)
        return walked.output

    def coupled(self, ids: torch.Tensor | None) -> Coupled:
        """What makes log-probabilities of the head's logits in this step; `ids` as there."""
        batch = self.input_batch
        generators = self._generators() if self.coupling is not None else {}
        return Coupled(self.coupling, batch.req_ids, batch.temperature_cpu.tolist(), generators, ids)

    def _generators(self) -> dict[int, torch.Generator]:
        """What the step's requests draw from, by their index in the batch; those in none take vLLM's global noise."""
        batch = self.input_batch
        if self.coupling is None or batch.sampling_metadata.all_greedy:
            return batch.generators
        sampled = (batch.temperature_cpu[: batch.num_reqs] > 0) & ~self.discard_request_mask.np[: batch.num_reqs]
        own = {i: self.coupling.generator(batch.req_ids[i]) for i in sampled.nonzero()[0].tolist()}
        return own | batch.generators

    def _coupling(self) -> Coupling | None:
        config = self.vllm_config.model_config
        noise = foretold(self.sampler, config.get_vocab_size(), self.device)
        if noise is None:
            logger.info("Drafting without the noise that this vLLM samples with: it is made in a way not known here.")
            return None
        return Coupling(noise, config.get_vocab_size(), self.device, config.seed or 0)

    def _hold_generators(self) -> dict[int, torch.Generator]:
        """Take the generators of seeded requests that still read their prompt out of the batch; returns them.

        What is sampled for those is thrown away. vLLM draws it all the same and winds the generator back, which no
        CPU generator can do: it raises, and the engine is gone.
        """
        generators = self.input_batch.generators  # the very dict that the sampling metadata hold
        discarded = self.discard_request_mask.np
        return {index: generators.pop(index) for index in [*generators] if discarded[index]}

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        """Whether vLLM is to run the drafter in this step; not where nothing is to be drafted."""
        fits = super()._input_fits_in_drafter(common_attn_metadata)
        if not fits or not self._decodes:
            return fits
        drafter = self.drafter
        drafter.plan = drafter.planner.plan(self)
        return drafter.plan.depth > 0 or not drafter.postpone(self._state)

    def _calc_spec_decode_metadata(self, num_draft_tokens: np.ndarray, cu_num_scheduled_tokens: np.ndarray) -> Any:
        """vLLM's; where nothing was drafted the same by a shorter way, for a step that should cost nothing."""
        if num_draft_tokens.any():
            return super()._calc_spec_decode_metadata(num_draft_tokens, cu_num_scheduled_tokens)
        rows = torch.from_numpy(cu_num_scheduled_tokens - 1).to(self.device)
        count = len(rows)
        if count not in self._undrafted:
            ends = torch.arange(1, count + 1, dtype=torch.int32, device=self.device)
            nothing, zeros = ends.new_empty(0), torch.zeros_like(ends)
            self._undrafted[count] = SpecDecodeMetadata(nothing, [0] * count, zeros, ends, nothing, ends - 1, rows)
        return replace(self._undrafted[count], logits_indices=rows)

    def _copy_draft_token_ids_to_cpu(self, scheduler_output: Any, zeros_only: bool = False) -> None:
        """vLLM's. What it makes up for a step without drafts, as many zeros as drafts can be, becomes none."""
        if zeros_only:
            self._draft_token_ids = [[] for _ in self.input_batch.req_ids]
        super()._copy_draft_token_ids_to_cpu(scheduler_output, zeros_only)

    def _only_decodes(self) -> bool:
        drafts = {s.index: len(s.tree) for s in self._scheduled}
        counts = self.num_scheduled_tokens.np[: self.input_batch.num_reqs].tolist()
        return all(count == 1 + drafts.get(index, 0) for index, count in enumerate(counts))

    def _takes_argmax(self, metadata: Any) -> bool:
        return metadata.all_greedy and all(
            draws_plainly(self.requests[request].sampling_params) for request in self.input_batch.req_ids
        )

    def _set_positions(self, scheduled: ScheduledTree, depths: np.ndarray) -> None:
        rows = slice(scheduled.row, scheduled.row + len(depths))
        self.positions[rows] = torch.from_numpy(scheduled.base + depths).to(self.positions.device)

    def _relinearise(self, paths: list[list[int]]) -> None:
        """Make every request's accepted path its first rows: ids, hidden states, keys and values."""
        sources, targets, moves = [], [], []
        for scheduled in self._scheduled:
            if scheduled.tree.is_chain:
                continue
            self._set_positions(scheduled, np.arange(len(scheduled.tree) + 1))
            for target, source in enumerate(paths[scheduled.index], 1):
                if source != target:
                    sources.append(scheduled.row + source)
                    targets.append(scheduled.row + target)
                    moves.append((scheduled.index, scheduled.base + source, scheduled.base + target))
        if not moves:
            return
        self.input_ids.gpu[targets] = self.input_ids.gpu[sources]
        self._move_states(sources, targets)
        self._move_keys(torch.tensor(moves).T)

    def _move_states(self, sources: list[int], targets: list[int]) -> None:
        """Move rows of the hidden states that the head reads next."""
        states = [self._state.hidden_states, *(self._state.aux_hidden_states or ())]
        for each in {t.data_ptr(): t for t in states}.values():
            each[targets] = each[sources]

    def _move_keys(self, moves: torch.Tensor) -> None:
        """Move KV entries; `moves` [3, n]: request index, position from, position to."""
        layers = self.compilation_config.static_forward_context
        drafting = self._drafting_layers()
        for group, described in enumerate(self.kv_cache_config.kv_cache_groups):
            table = self.input_batch.block_table[group]
            blocks, size = table.get_device_tensor(self.input_batch.num_reqs), table.block_size
            request, *positions = moves.to(blocks.device)
            source, target = (blocks[request, p // size].long() * size + p % size for p in positions)
            # The head needs none of this: its next pass writes what was accepted anew.
            caches = {layers[n].kv_cache.data_ptr(): layers[n] for n in described.layer_names if n not in drafting}
            self._move_slots(caches.values(), source, target)

    def _drafting_layers(self) -> set[str]:
        """The attention layers that are the head's."""
        return set(getattr(self.drafter, "_draft_attn_layer_names", ()))

    def _update_states(self, scheduler_output: Any) -> Any:
        for request in scheduler_output.finished_req_ids:
            self.trees.pop(request, None)
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
