"""Speculators of Model Runner V2 that grow trees: our chains' first pass, then level after level of beams.

All levels are one CUDA graph, where the runner captures any. What outlives a step, or a graph reads or writes, stays
where it was made here. Nothing in a step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.block_table import PAD_SLOT_ID
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator

from ..configs import AttentionFreeConfig
from ..errors import HeadError
from ..preflight import draft_config
from ..serving.speculator_v2 import AttentionFreeSpeculator, HeadDrafting, HeadSpeculator
from .attention import attach, drafting
from .attention.lead import Lead, lead
from .config import parse_drafting
from .grow import Beams, extent, grow, select
from .trees import columns
from .vocabulary import DraftVocabulary


def make_tree_speculator(vllm_config: Any, device: torch.device) -> HeadDrafting:
    """The speculator for a head of ours, where trees are asked for."""
    attention_free = isinstance(getattr(draft_config(vllm_config), "model", None), AttentionFreeConfig)
    return (TreeAttentionFreeSpeculator if attention_free else TreeHeadSpeculator)(vllm_config, device)


class TreeDrafting(HeadDrafting):
    """What trees of all heads have in common."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        asked = parse_drafting(vllm_config.additional_config, self.num_speculative_steps)
        assert asked is not None  # this speculator is made only then
        self.shape = asked.shape
        requests, nodes = self.max_num_reqs, self.num_speculative_steps
        beams = max(extent(self.shape)[1], default=1)
        if requests * beams > self.max_num_tokens:
            raise HeadError(
                f"draft trees of {beams} beams for up to {requests} requests, with "
                f"max_num_batched_tokens {self.max_num_tokens}",
                "The head drafts a level of all requests in one pass",
                f"Pass --max-num-seqs {self.max_num_tokens // beams} or less, or more batched tokens",
            )

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        #: [slots, N] and [slots] of each request's last tree, whose tokens the runner keeps: the node that each node
        #: continues, and nodes in use.
        self.parents, self.counts = numbers(requests, nodes), numbers(requests)
        #: The same of the trees grown last, by their place in the batch; and which of these may be but chains.
        self._parents, self._counts = numbers(requests, nodes), numbers(requests)
        self._chains = torch.zeros(requests, dtype=torch.bool, device=device)

    def load_model(self, target_model: torch.nn.Module) -> None:
        super().load_model(target_model)
        self.vocabulary = DraftVocabulary(self.model)

    def draft_chains(self, chains: np.ndarray) -> None:
        """Of the batch's requests, the next proposal's, which may draft but chains [B] bool."""
        async_tensor_h2d(chains, out=self._chains[: len(chains)])

    def report(self) -> dict[str, Any]:
        """What is drafted, for `TreeWorker.drafting_report`: the same for every request of every step."""
        shape = self.shape
        return {"kind": shape.kind, "nodes": shape.nodes, "depth": shape.depth, "top_k": shape.top_k}

    def propose(self, input_batch: Any, *args: Any, dummy_run: bool = False, **kwargs: Any) -> Tensor:
        drafts = super().propose(input_batch, *args, dummy_run=dummy_run, **kwargs)
        if not dummy_run:
            slots, requests = input_batch.idx_mapping, input_batch.num_reqs
            self.parents[slots], self.counts[slots] = self._parents[:requests], self._counts[:requests]
            self._chains.zero_()
        return drafts

    def _grow(self, rows: int, features: Tensor, level: Callable[[Beams], Tensor]) -> None:
        """Grow a tree for each of so many requests, of which the head says features [rows, H] at the root."""
        found = grow(self.vocabulary.logits(features), level, self.shape, self.vocabulary.ids)
        trees = select(found, self.shape.nodes, chains=self._chains[:rows]).trees
        self.draft_tokens[:rows], self._parents[:rows], self._counts[:rows] = trees.tokens, trees.parents, trees.counts


def continued(states: Tensor, beams: Beams) -> Tensor:
    """[B, k, H] of states [B, k before, H]: of the beam that each beam continues."""
    return states.gather(1, beams.sources[..., None].expand(-1, -1, states.shape[-1]))


class TreeAttentionFreeSpeculator(TreeDrafting, AttentionFreeSpeculator):
    """Trees of heads without attention: a beam is a row."""

    def _draft(self, rows: int, steps: int) -> None:
        lagging = self.model.head_config.token_pairing == "same"
        tokens = self.tokens[:rows]
        features, states = self.model(self.previous[:rows] if lagging else tokens, None, self.hidden[:rows])
        fed, states = tokens[:, None], states[:, None]

        def level(beams: Beams) -> Tensor:
            nonlocal fed, states
            # A lagging head reads the token before the one it continues.
            read = fed.gather(1, beams.sources) if lagging else beams.tokens
            found, states = self.model(read.flatten(), None, continued(states, beams).flatten(0, 1))
            fed, states = beams.tokens, states.view(*beams.tokens.shape, -1)
            return self.vocabulary.logits(found).view(*beams.tokens.shape, -1)

        self._grow(rows, features, level)


class _Growing(HeadDrafting, EagleSpeculator):
    """vLLM's speculator up to the first draft, and levels of beams behind it: these write their keys behind the
    request's, one after another, and see their ancestors."""

    shape: Any
    num_speculative_steps: int
    vocabulary: DraftVocabulary
    _grow: Callable[..., None]

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        requests = self.max_num_reqs
        self._features = torch.zeros(requests, self.hidden_size, dtype=self.dtype, device=device)
        self._last = torch.zeros(requests, dtype=torch.int64, device=device)
        # What no CUDA graph can do is choose anew.
        mode = vllm_config.compilation_config.cudagraph_mode
        graphs = mode is not None and mode.has_full_cudagraphs()
        self._splits = vllm_config.attention_config.flash_attn_max_num_splits_for_cuda_graph if graphs else 0

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        super().init_cudagraph_manager(cudagraph_mode)
        full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        mode = CUDAGraphMode.FULL_DECODE_ONLY if full else CUDAGraphMode.NONE
        self.growth_graphs = CudaGraphManager(self.vllm_config, self.device, mode, decode_query_len=1)

    def capture(self) -> None:
        # vLLM's graphs of later drafts would never be run.
        nodes, self.num_speculative_steps = self.num_speculative_steps, 1
        try:
            super().capture()
        finally:
            self.num_speculative_steps = nodes
        self.draft_max_seq_len = self.max_model_len
        self.idx_mapping.fill_(-1)

        def prepare(desc: BatchExecutionDescriptor, warmup: bool) -> Any:
            bounds = torch.full((desc.num_reqs,), self.max_model_len, dtype=torch.int32)
            return lambda mode: self._levels(desc.num_reqs, bounds, False)

        self.growth_graphs.capture(prepare, progress_bar_desc="Capturing draft tree CUDA graphs")

    def sample_draft(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Keep what the head says at the root. No token is drawn of it here."""
        self._features[: len(hidden_states)] = hidden_states
        return self.draft_tokens[: len(hidden_states), 0]

    def propose(
        self,
        input_batch: Any,
        *args: Any,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        skipped = dummy_run and skip_attn_for_dummy_run
        drafts = super().propose(
            input_batch, *args, dummy_run=dummy_run, skip_attn_for_dummy_run=skip_attn_for_dummy_run,
            num_speculative_tokens=1, **kwargs,
        )  # fmt: skip
        requests = input_batch.num_reqs
        self._last[:requests] = self.input_buffers.positions[:requests]
        bounds = input_batch.seq_lens_cpu_upper_bound[:requests]
        self.draft_max_seq_len = min(int(bounds.max()) + self.num_speculative_steps, self.max_model_len)
        graph = self.growth_graphs.dispatch(requests, requests, uniform_token_count=1, num_active_loras=0)
        if graph.cg_mode == CUDAGraphMode.FULL and not skipped:
            self.growth_graphs.run_fullgraph(graph)
        else:
            self._levels(requests, bounds, skipped)
        return drafts

    def _levels(self, rows: int, bounds: Tensor, skipped: bool) -> None:
        """Grow the trees of so many requests. bounds [rows]: on the host, no fewer keys than each has. skipped: without
        attention, where memory is measured."""
        states = self.hidden_states[:rows].clone()[:, None]

        def level(beams: Beams) -> Tensor:
            nonlocal states
            batch, k = beams.tokens.shape
            metadata, slots = (None, None) if skipped else self._attention(beams, bounds)
            count, buffers = batch * k, self.input_buffers
            buffers.input_ids[:count] = beams.tokens.flatten()
            positions = (self._last[:batch, None] + beams.depth).clamp(max=self.max_model_len - 1)
            buffers.positions[:count] = positions.expand(-1, k).flatten()
            self.hidden_states[:count] = continued(states, beams).flatten(0, 1)
            features, fed = self._run_model(count, metadata, slots, num_tokens_across_dp=None)
            states = fed[:count].view(batch, k, -1)
            return self.vocabulary.logits(features[:count]).view(batch, k, -1)

        self._grow(rows, self._features[:rows], level)

    def _attention(self, beams: Beams, bounds: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Attention metadata of a level, and where its keys go, by layer."""
        batch, k = beams.tokens.shape
        context, drafted = self._last[:batch] + 1, beams.drafted
        # Behind the longest length there are no slots: a request so long writes no keys and attends to nothing.
        fits = (context + drafted <= self.max_model_len) & (self.idx_mapping[:batch] >= 0)
        at = context[:, None] + drafted - k + columns(beams.tokens)
        found = []
        for blocks, size in zip(self.block_tables.input_block_tables, self.block_tables.block_sizes, strict=True):
            index = (at // size).clamp(max=blocks.shape[1] - 1)
            slots = blocks[:batch].gather(1, index).long() * size + at % size
            found.append(slots.where(fits[:, None], PAD_SLOT_ID).flatten())
        buffers = self.input_buffers
        buffers.query_start_loc[: batch + 1] = torch.arange(batch + 1, device=self.device) * k
        buffers.seq_lens[:batch] = (context + drafted).clamp(max=self.max_model_len)
        slot_mappings = torch.stack(found)
        metadata = self._build_attn_metadata(
            num_reqs=batch,
            batch_desc=BatchExecutionDescriptor(CUDAGraphMode.NONE, batch * k, batch),
            query_start_loc_np=np.arange(batch + 1, dtype=np.int32) * k,
            seq_lens_cpu_upper_bound=bounds,
            step=drafted,
            slot_mappings=slot_mappings,
        )
        tail = drafting(beams.seen, drafted, context)
        tail = tail._replace(counts=tail.counts.where(fits, 0))
        said = Lead(
            buffers.query_start_loc[: batch + 1], context.int(), batch * k, k, self.draft_max_seq_len, True, None,
            self._splits,
        )  # fmt: skip
        for number, groups in enumerate(self.attn_groups):
            for group in groups:
                of_group = metadata[group.layer_names[0]]
                attach(of_group, tail)
                lead(of_group, said, self.block_tables.input_block_tables[number][:batch])
        return metadata, build_slot_mappings_by_layer(slot_mappings, self.kv_cache_config)


class TreeHeadSpeculator(TreeDrafting, HeadSpeculator, _Growing):
    """Trees of heads with attention."""
