"""The runner's part in drafting as much as pays: mixed into vLLM's V1 runner.

It asks for the plan of a step before the drafter would run, so that the drafter need not run where nothing is to be
drafted; it makes steps without drafts cost what they cost without us; and it tells how long steps take.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from .plan import NONE, Plan, allowance

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Base
else:
    Base = object


class PausingRunner(Base):
    """Mixin over `GPUModelRunner`; see the module."""

    _draft_token_ids: Any

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        #: Tokens that the step's sampling gave each request of the batch.
        self.sampled: list[int] = []
        #: vLLM's state between a step's forward pass and its sampling.
        self._state: Any = None
        #: No request of the step reads a prompt: each has its last token and its drafts in it.
        self._decodes = False
        #: What describes a step that verifies nothing, by requests.
        self._undrafted: dict[int, SpecDecodeMetadata] = {}
        #: Ranks that must decide alike are told no times, which differ between them.
        self._timed = vllm_config.parallel_config.tensor_parallel_size == 1
        self._started = self._drafting = 0.0
        super().__init__(vllm_config, device)

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        self._started, self._drafting = perf_counter(), 0.0
        return super().execute_model(*args, **kwargs)

    def sample_tokens(self, grammar_output: Any) -> Any:
        self._state = state = self.execute_model_state
        rows = 0 if state is None or state.logits is None else len(state.logits)
        self._decodes = int(self.num_scheduled_tokens.np[: self.input_batch.num_reqs].sum()) == rows > 0
        try:
            output = super().sample_tokens(grammar_output)
        finally:
            self._state = None
        if self._decodes and self._timed:
            self.drafter.planner.times.observe(rows, (perf_counter() - self._started - self._drafting) * 1e3)
        return output

    def drafted(self, plan: Plan, catching_up: float, drafting: float) -> None:
        """The drafter took so many seconds, to read what it had missed and to draft."""
        self._drafting += catching_up + drafting
        if self._decodes and self._timed and plan.largest.levels:
            self.drafter.planner.drafted(plan, drafting * 1e3)

    def plan(self) -> Plan:
        """What the batch's requests may draft."""
        requests, discarded = self.input_batch.req_ids, self.discard_request_mask.np
        states = [self.requests[request] for request in requests]
        return self.drafter.planner.plan(
            requests,
            [
                # What is discarded is of a prompt still being read; what this step sampled is in no list yet.
                NONE
                if discarded[i]
                else allowance(state.sampling_params, len(state.output_token_ids) + self.sampled[i])
                for i, state in enumerate(states)
            ],
        )

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        """Whether vLLM is to run the drafter in this step; not where nothing is to be drafted."""
        fits = super()._input_fits_in_drafter(common_attn_metadata)
        if not fits or not self._decodes:
            return fits
        drafter = self.drafter
        drafter.plan = self.plan()
        return drafter.plan.largest.levels > 0 or not drafter.postpone(self._state)

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
