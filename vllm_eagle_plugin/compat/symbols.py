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

_RUNNER_V2 = _V2 + "model_runner"
_SAMPLE_V2 = _V2 + "sample."

#: `tree.host_v2`, `tree.walk_v2` and `tree.draft_v2`, beside Model Runner V2 and what chains need of it.
TREES_V2 = (
    Symbol(_RUNNER_V2, "GPUModelRunner.__init__", ("vllm_config", "device")),
    Symbol(_RUNNER_V2, "GPUModelRunner.initialize_kv_cache", ("kv_cache_config",)),
    Symbol(_RUNNER_V2, "GPUModelRunner.add_requests", ("scheduler_output",)),
    Symbol(_RUNNER_V2, "GPUModelRunner.execute_model", ("scheduler_output",)),
    Symbol(_RUNNER_V2, "GPUModelRunner.prepare_inputs", ("scheduler_output",)),
    Symbol(_RUNNER_V2, "GPUModelRunner.prepare_attn", ("input_batch",)),
    Symbol(_RUNNER_V2, "GPUModelRunner.sample_tokens", ("grammar_output",)),
    Symbol(_RUNNER_V2, "GPUModelRunner.sample", ("hidden_states", "input_batch", "grammar_output")),
    Symbol(
        _V2 + "model_states.default", "DefaultModelState.prepare_attn",
        ("input_batch", "cudagraph_mode", "block_tables", "slot_mappings", "attn_groups", "kv_cache_config"),
        ("for_capture",),
    ),
    Symbol(
        _SAMPLE_V2 + "sampler", "Sampler.sample",
        (
            "logits", "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos", "input_ids",
            "expanded_local_pos", "seq_lens_upper_bound_np",
        ),
        ("return_logprobs",),
    ),
    Symbol(_SAMPLE_V2 + "sampler", "Sampler.get_logprobs_dims", ("idx_mapping_np",)),
    Symbol(
        _SAMPLE_V2 + "logprob", "compute_topk_scores",
        ("logits", "num_logprobs", "sampled_token_ids", "cu_num_logits"),
        ("logprob_token_ids_state", "expanded_idx_mapping", "max_per_req_token_ids", "logits_mode"),
    ),
    Symbol(_SAMPLE_V2 + "penalties", "PenaltiesState.apply", ("logits", "ctx")),
    Symbol(_SAMPLE_V2 + "bad_words", "BadWordsState.apply", ("logits", "ctx")),
    Symbol(_SAMPLE_V2 + "logit_bias", "LogitBiasState.apply", ("logits", "ctx")),
    Symbol(_V2 + "metrics.logits", "get_num_nans", ("logits",)),
    Symbol(_V2 + "structured_outputs", "grammar_invalid_drafts", ("input_batch",)),
    Symbol(
        _V2 + "structured_outputs", "StructuredOutputsWorker.apply_grammar_bitmask",
        ("logits", "input_batch", "grammar_req_ids", "grammar_bitmask"),
    ),
    Symbol(
        _V2 + "input_batch", "get_num_sampled_and_rejected",
        ("num_sampled", "seq_lens", "cu_num_logits", "idx_mapping", "prefill_len"),
    ),
    Symbol(_V2 + "spec_decode.rejection_sampler", "get_max_chunk_logits", ("vocab_size",)),
    Symbol(
        _SPECULATOR, "DraftModelSpeculator._build_attn_metadata",
        ("num_reqs", "batch_desc", "query_start_loc_np", "seq_lens_cpu_upper_bound", "step"), ("slot_mappings",),
    ),
    Symbol(
        _V2 + "spec_decode.target_dependent_ar.speculator", "TargetDependentARSpeculator._run_model",
        ("num_tokens", "attn_metadata", "slot_mappings", "num_tokens_across_dp"),
    ),
    Symbol(_V2 + "attn_utils", "build_slot_mappings_by_layer", ("slot_mappings", "kv_cache_config")),
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
