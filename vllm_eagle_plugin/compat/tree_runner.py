"""What draft trees override and read of vLLM's V1 model runner."""

from __future__ import annotations

import inspect
from typing import Any

from .problems import unsuited

#: What the tree runner overrides and calls of vLLM's V1 runner (with the parameters it hands on by name or place),
#: and what it reads of a runner that has been made.
RUNNER_METHODS = {
    "_prepare_inputs": ("scheduler_output", "num_scheduled_tokens"),
    "_build_attention_metadata": (),
    "_sample": ("logits", "spec_decode_metadata"),
    "execute_model": (),
    "sample_tokens": ("grammar_output",),
    "initialize_kv_cache": ("kv_cache_config",),
    "_input_fits_in_drafter": ("common_attn_metadata",),
    "_update_states": ("scheduler_output",),
    "_calc_spec_decode_metadata": ("num_draft_tokens", "cu_num_scheduled_tokens"),
    "_copy_draft_token_ids_to_cpu": ("scheduler_output", "zeros_only"),
}
RUNNER_ATTRIBUTES = (
    "_draft_token_ids",
    "discard_request_mask",
    "drafter",
    "execute_model_state",
    "input_batch",
    "input_ids",
    "max_model_len",
    "max_num_tokens",
    "num_scheduled_tokens",
    "positions",
    "query_start_loc",
    "requests",
    "sampler",
    "use_aux_hidden_state_outputs",
)


def require_tree_runner(runner: type) -> None:
    """Raise `HeadError` unless `runner`, vLLM's V1 runner class, has what draft trees override."""
    for name, expected in RUNNER_METHODS.items():
        method = getattr(runner, name, None)
        if not callable(method):
            raise unsuited(f"{runner.__name__} has no {name}, which draft trees need")
        parameters = tuple(inspect.signature(method).parameters)
        taken = parameters[1 : 1 + len(expected)]
        if taken != expected:
            raise unsuited(f"{runner.__name__}.{name} takes {', '.join(taken)}, not {', '.join(expected)}")


def require_attributes(runner: Any) -> None:
    """Raise `HeadError` unless a runner that has been made holds what draft trees read."""
    missing = [name for name in RUNNER_ATTRIBUTES if not hasattr(runner, name)]
    if missing:
        raise unsuited(f"its model runner has no {', '.join(missing)}, which draft trees need")
