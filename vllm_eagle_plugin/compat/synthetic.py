"""vLLM's synthetic acceptance on CPU, where stock vLLM 0.32 stops with an assertion."""

from __future__ import annotations

from typing import Any

from .cpu_sampler import replace_kernel
from .hooks import when_imported


def allow_synthetic_acceptance_on_cpu() -> None:
    """Let `rejection_sample_method: synthetic` run on CPU.

    Call it before vLLM is imported. Greedy only, and only for measuring: synthetic answers mean nothing.
    """
    when_imported("vllm.utils.cpu_triton_utils", _hook_greedy_rejection)


def _hook_greedy_rejection(module: Any) -> None:
    stock = module._rejection_greedy_sample_kernel_impl

    def sample(
        output: Any,
        cu_num_draft_tokens: Any,
        draft_token_ids: Any,
        target_argmax: Any,
        bonus_token_ids: Any,
        is_greedy: Any,
        max_spec_len: int,
        uniform_probs: Any = None,
        synthetic_conditional_rates: Any = None,
        SYNTHETIC_MODE: bool = False,
    ) -> None:
        if SYNTHETIC_MODE:
            target_argmax = synthetic_targets(
                cu_num_draft_tokens, draft_token_ids, target_argmax, uniform_probs, synthetic_conditional_rates
            )
        stock(output, cu_num_draft_tokens, draft_token_ids, target_argmax, bonus_token_ids, is_greedy, max_spec_len)

    replace_kernel(module, "_rejection_greedy_sample_kernel_impl", sample)


def synthetic_targets(cu_num_draft_tokens: Any, drafts: Any, targets: Any, uniform: Any, rates: Any) -> Any:
    """Target tokens [N] that agree with the drafts [N] exactly where synthetic acceptance says so.

    A draft at position i of its request is accepted if its `uniform` number is below `rates[i]`, as in vLLM's
    `rejection_greedy_sample_kernel`; elsewhere the target's token, or another one where that is the draft.
    """
    import torch

    starts = torch.cat((cu_num_draft_tokens.new_zeros(1), cu_num_draft_tokens[:-1]))
    counts = cu_num_draft_tokens - starts
    positions = torch.arange(len(drafts), device=drafts.device) - starts.repeat_interleave(counts.long())
    accepted = (uniform < rates[positions]) & (drafts >= 0)
    drafts = drafts.to(targets.dtype)
    other = torch.where(targets == drafts, torch.where(drafts > 0, drafts - 1, drafts + 1), targets)
    return torch.where(accepted, drafts, other)
