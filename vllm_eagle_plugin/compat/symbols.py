"""What of vLLM's we call, override or wrap, declared: read when it is met (`missing`) and against the sources of versions
that cannot run here (`tools/check_symbols.py`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Symbol(NamedTuple):
    """A function, or a class's method, as `Class.method`."""

    module: str
    name: str
    #: Its first parameters, in order (not `self`); others that it must take, wherever they stand.
    first: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


_EAGLE = "vllm.v1.spec_decode.eagle"
_V2 = "vllm.v1.worker.gpu."
_SPECULATOR = _V2 + "spec_decode.speculator"
_PROPOSE_V2 = (
    "input_batch", "attn_metadata", "slot_mappings", "last_hidden_states", "aux_hidden_states", "num_sampled",
    "num_rejected", "last_sampled", "next_prefill_tokens", "temperature", "seeds",
)  # fmt: skip

#: `serving.proposer_v1`, beside the V1 runner.
CHAINS_V1 = (
    Symbol(_EAGLE, "EagleProposer.load_model"),
    Symbol(_EAGLE, "EagleProposer.dummy_run"),
    Symbol(_EAGLE, "EagleProposer.initialize_attn_backend"),
    Symbol(_EAGLE, "EagleProposer.validate_same_kv_cache_group"),
    Symbol(_EAGLE, "EagleProposer.initialize_cudagraph_keys"),
    Symbol(_EAGLE, "EagleProposer._maybe_share_embeddings"),
    Symbol(_EAGLE, "EagleProposer._maybe_share_lm_head"),
    Symbol(_EAGLE, "EagleProposer._sample_from_logits"),
    Symbol(_EAGLE, "EagleProposer.__init__", ("vllm_config", "device", "runner")),
    Symbol(
        _EAGLE, "EagleProposer.propose", ("num_speculative_tokens",),
        (
            "target_token_ids", "target_positions", "target_hidden_states", "next_token_ids",
            "token_indices_to_sample", "common_attn_metadata", "sampling_metadata",
        ),
    ),
)  # fmt: skip

#: `serving.speculator_v2`, beside Model Runner V2.
CHAINS_V2 = (
    Symbol(_V2 + "spec_decode", "init_speculator", ("vllm_config", "device")),
    Symbol(_V2 + "spec_decode.eagle.speculator", "EagleSpeculator.propose", _PROPOSE_V2, ("dummy_run",)),
    Symbol(_SPECULATOR, "DraftModelSpeculator.propose", _PROPOSE_V2, ("dummy_run", "num_speculative_tokens")),
    Symbol(_SPECULATOR, "DraftModelSpeculator.__init__", ("vllm_config", "device")),
    Symbol(_SPECULATOR, "DraftModelSpeculator.load_draft_model", ("target_model", "target_attn_layer_names")),
    Symbol(_SPECULATOR, "DraftModelSpeculator.set_attn"),
    Symbol(_SPECULATOR, "DraftModelSpeculator.init_cudagraph_manager", ("cudagraph_mode",)),
    Symbol(_SPECULATOR, "DraftModelSpeculator.capture"),
    Symbol(
        _SPECULATOR, "DraftModelSpeculator._copy_request_inputs",
        ("num_reqs", "idx_mapping", "temperature", "seeds"), ("dummy_run",),
    ),
    Symbol(
        _SPECULATOR, "DraftModelSpeculator.sample_draft",
        ("hidden_states", "sample_src_positions", "idx_mapping", "temperature", "seeds", "draft_step", "draft_logits"),
    ),
    Symbol(
        _V2 + "cudagraph_utils", "CudaGraphManager.__init__",
        ("vllm_config", "device", "cudagraph_mode", "decode_query_len"),
    ),
    Symbol(_V2 + "cudagraph_utils", "CudaGraphManager.capture", ("create_forward_fn",), ("progress_bar_desc",)),
    Symbol(
        _V2 + "cudagraph_utils", "CudaGraphManager.dispatch",
        ("num_reqs", "num_tokens", "uniform_token_count", "num_active_loras"),
    ),
    Symbol(_V2 + "cudagraph_utils", "CudaGraphManager.run_fullgraph", ("desc",)),
    Symbol(_V2 + "spec_decode.utils", "get_pp_safe_draft_load_config", ("load_config",)),
    Symbol("vllm.model_executor.model_loader.utils", "get_draft_load_config", ("vllm_config",)),
    Symbol("vllm.model_executor.model_loader", "get_model", (), ("vllm_config", "model_config")),
    Symbol("vllm.compilation.backends", "set_model_tag", ("tag",)),
    Symbol("vllm.config.speculative", "SpeculativeConfig.apply_draft_overrides", ("vllm_config",)),
)  # fmt: skip


def missing(symbols: Iterable[Symbol], parameters_of: Callable[[Symbol], list[str] | None]) -> list[str]:
    """What `symbols` lack in words, empty if nothing; `parameters_of` says what one takes (`self` left out), None
    where it is not there."""
    problems = []
    for symbol in symbols:
        taken = parameters_of(symbol)
        if taken is None:
            problems.append(f"{symbol.module} has no {symbol.name}")
        elif tuple(taken[: len(symbol.first)]) != symbol.first:
            problems.append(f"{symbol.name} takes {', '.join(taken)}; {', '.join(symbol.first)} were expected first")
        elif lacking := [name for name in symbol.others if name not in taken]:
            problems.append(f"{symbol.name} does not take {', '.join(lacking)}")
    return problems


def parameters_in(module: Any, symbol: Symbol) -> list[str] | None:
    """What a symbol in an imported `module` takes; see `missing`."""
    found = module
    for part in symbol.name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        return None
    taken = list(inspect.signature(found).parameters)
    return taken[1:] if "." in symbol.name else taken
