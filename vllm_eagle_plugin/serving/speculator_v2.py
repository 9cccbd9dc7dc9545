"""Chain speculators for our heads in vLLM's Model Runner V2.

`HeadSpeculator` lends a head the weights of any target and checks that it is the right one.
`AttentionFreeSpeculator` drafts without a KV cache, on one row per request.
Nothing here waits for the device, unless somebody watches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import CUDAGraphMode, replace
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.model_loader.utils import get_draft_load_config
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator
from vllm.v1.worker.gpu.spec_decode.utils import get_pp_safe_draft_load_config

from ..compat.running import sampled_rows_v2
from ..configs import AttentionFreeConfig
from ..preflight import draft_config
from ..record import Proposal, observers, record_to_file
from .models.base import DraftHead
from .target_weights import check_target, language_model, share_embedding, share_lm_head

#: What vLLM names the requests that it warms its kernels up with.
_WARM_UP = ("_warmup_", "_v2_mixed_warmup_")


def make_speculator(vllm_config: Any, device: torch.device) -> DraftModelSpeculator:
    """The speculator for a head of ours."""
    attention_free = isinstance(getattr(draft_config(vllm_config), "model", None), AttentionFreeConfig)
    return (AttentionFreeSpeculator if attention_free else HeadSpeculator)(vllm_config, device)


class HeadDrafting(DraftModelSpeculator):
    """What all our speculators do their own way."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        record_to_file()

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> nn.Module:
        """As `load_eagle_model` does, for targets of any family: see `target_weights`."""
        config = self.speculative_config.apply_draft_overrides(self.vllm_config)
        load_config = get_pp_safe_draft_load_config(get_draft_load_config(config))
        if load_config is not config.load_config:
            config = replace(config, load_config=load_config)
        with set_model_tag("eagle_head"):
            head = get_model(vllm_config=config, model_config=self.draft_model_config)
        target = language_model(target_model)
        share_embedding(head, target, self.hidden_size)
        share_lm_head(head, target)
        check_target(self.vllm_config, target)
        return head

    def sample_draft(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B] tokens. Where nobody asks for logits, the largest one is found without gathering or scattering them."""
        logits_wanted = self.draft_logits is not None or self.acceptance_estimator is not None
        if logits_wanted or not isinstance(self.model, DraftHead):
            return super().sample_draft(hidden_states, *args, **kwargs)
        return self.model.get_top_tokens(hidden_states)


class HeadSpeculator(HeadDrafting, EagleSpeculator):
    """vLLM's chain speculator, for a target of any family."""

    def propose(
        self,
        input_batch: Any,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, Tensor],
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        *args: Any,
        dummy_run: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        # vLLM 0.32 has every EAGLE-3 target hand over aux states; some heads read the last one alone.
        if not getattr(self.model.model, "use_aux_hidden_state", True):
            aux_hidden_states = None
        drafts = super().propose(
            input_batch, attn_metadata, slot_mappings, last_hidden_states, aux_hidden_states, num_sampled,
            num_rejected, last_sampled, next_prefill_tokens, *args, dummy_run=dummy_run, **kwargs,
        )  # fmt: skip
        if observers and not dummy_run:
            row = sampled_rows_v2(input_batch, num_rejected)
            tokens = next_tokens(input_batch, num_sampled, last_sampled, next_prefill_tokens)
            _report(input_batch, row, tokens, drafts)
        return drafts


class AttentionFreeSpeculator(HeadDrafting):
    """Drafts with a head that has no attention: no KV, no metadata, one row per request.

    The prompt needs no work at all: a chain depends only on the last verified position. All k steps are one CUDA
    graph, where the runner captures any; what a graph reads or writes stays where it was made here.
    """

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        requests, steps = self.max_num_reqs, self.num_speculative_steps
        self.hidden = torch.zeros(requests, self.hidden_size, dtype=self.dtype, device=device)
        self.tokens, self.previous, self.positions = torch.zeros(3, requests, dtype=torch.int64, device=device)
        self.steps = torch.arange(steps, device=device)
        self.graphs: CudaGraphManager | None = None  # none yet while vLLM profiles memory

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        self.attn_groups: list[Any] = []  # read by the runner

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        mode = CUDAGraphMode.FULL_DECODE_ONLY if full else CUDAGraphMode.NONE
        self.graphs = CudaGraphManager(self.vllm_config, self.device, mode, decode_query_len=1)

    def capture(self) -> None:
        def prepare(desc: BatchExecutionDescriptor, warmup: bool) -> Any:
            return lambda mode: self._draft(desc.num_reqs, self.num_speculative_steps)

        assert self.graphs is not None
        self.idx_mapping.fill_(-1)
        self.graphs.capture(prepare, progress_bar_desc="Capturing draft CUDA graphs")

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, Tensor],
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        *args: Any,
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        requests = input_batch.num_reqs
        drafts = self.draft_tokens[:requests]
        wanted = self.num_speculative_steps if num_speculative_tokens is None else num_speculative_tokens
        if wanted == 0:
            return drafts.fill_(-1)
        self._copy_request_inputs(requests, input_batch.idx_mapping, temperature, seeds, dummy_run=dummy_run)
        row = sampled_rows_v2(input_batch, num_rejected)
        self.hidden[:requests] = last_hidden_states[row]
        self.previous[:requests] = input_batch.input_ids[row]
        self.tokens[:requests] = next_tokens(input_batch, num_sampled, last_sampled, next_prefill_tokens)
        self.positions[:requests] = input_batch.positions[row] + 1  # of the token before the first draft
        if not self._replay(requests):
            self._draft(requests, wanted)
        if observers and not dummy_run:
            _report(input_batch, row, self.tokens[:requests], drafts[:, :wanted])
        return drafts

    def _replay(self, requests: int) -> bool:
        """Draft with a captured graph, if there is one for so many requests."""
        if self.graphs is None:
            return False
        batch = self.graphs.dispatch(requests, requests, uniform_token_count=1, num_active_loras=0)
        if batch.cg_mode != CUDAGraphMode.FULL:
            return False
        self.graphs.run_fullgraph(batch)
        return True

    def _draft(self, rows: int, steps: int) -> None:
        """Fill `draft_tokens` [:rows, :steps] from what the buffers hold."""
        lagging = self.model.head_config.token_pairing == "same"
        hidden, previous, tokens = self.hidden[:rows], self.previous[:rows], self.tokens[:rows]
        for step in range(steps):
            features, hidden = self.model(previous if lagging else tokens, None, hidden)
            previous = tokens
            # A draw is keyed by the position of the token before it.
            tokens = self.sample_draft(
                features, self.positions[:rows] + step, self.idx_mapping[:rows], self.temperature, self.seeds,
                self.steps[step], self.draft_logits,
            )  # fmt: skip
            self.draft_tokens[:rows, step] = tokens


def next_tokens(input_batch: Any, num_sampled: Tensor, last_sampled: Tensor, next_prefill_tokens: Tensor) -> Tensor:
    """The token [B] behind each request's last verified position: just sampled, or the prompt's next."""
    slots = input_batch.idx_mapping[: input_batch.num_reqs]
    of_prompt = next_prefill_tokens.view(-1, next_prefill_tokens.shape[-1])[0]
    return torch.where(num_sampled[: len(slots)] > 0, last_sampled.view(-1)[slots], of_prompt[slots])


def _report(input_batch: Any, rows: Tensor, tokens: Tensor, drafts: Tensor) -> None:
    """Tell who watches what was drafted; waits for the device."""
    columns = input_batch.req_ids, input_batch.positions[rows].tolist(), tokens.tolist(), drafts.tolist()
    proposals = [Proposal(*row) for row in zip(*columns, strict=True) if not row[0].startswith(_WARM_UP)]
    for observer in observers if proposals else ():
        observer(proposals)
