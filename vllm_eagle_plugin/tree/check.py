"""The settings that draft trees need: made, and whether they fit asked, in the front end before anything is loaded."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import UsageError
from . import SECTION, WORKER, asks_for_trees, section
from .config import Drafting, example, parse_drafting

#: Speculative methods whose heads can draft trees.
METHODS = ("eagle", "eagle3")

logger = logging.getLogger("vllm.eagle_plugin")


def make_settings(vllm_config: Any) -> None:
    """Before vLLM settles a `VllmConfig` that asks for trees: choose what they need of what the user left open.

    Raises:
        UsageError: asynchronous scheduling was asked for, on the V1 runner. (vLLM's CPU platform would overrule it
            without a word.)
    """
    if section(vllm_config.additional_config) is None:
        return
    v1 = not getattr(vllm_config, "use_v2_model_runner", False)
    if v1 and vllm_config.scheduler_config.async_scheduling:
        raise _error("draft trees or adaptive length with asynchronous scheduling", 16)
    parallel, scheduler, chosen = vllm_config.parallel_config, vllm_config.scheduler_config, []
    if parallel.worker_cls == "auto":
        parallel.worker_cls = WORKER
        chosen.append(f"--worker-cls {WORKER}")
    if v1 and scheduler.async_scheduling is None:
        scheduler.async_scheduling = False
        chosen.append("--no-async-scheduling")
    if chosen:
        logger.info("For draft trees or adaptive length, vLLM runs with %s.", " ".join(chosen))


def check_drafting(vllm_config: Any) -> Drafting | None:
    """What a `VllmConfig` asks to be drafted, or None: chains, by vLLM itself.

    Raises:
        UsageError: a piece is missing, contradicts another, or is one that trees cannot work with.
    """
    speculative, parallel = vllm_config.speculative_config, vllm_config.parallel_config
    if not asks_for_trees(vllm_config):
        return None
    nodes = getattr(speculative, "num_speculative_tokens", None) or 16
    drafting = parse_drafting(vllm_config.additional_config, nodes)
    if drafting is None:
        given = section(vllm_config.additional_config)
        said = f"the additional config's {SECTION} is {given}" if given is not None else f"--worker-cls {WORKER}"
        raise _error(f"{said}, with neither a tree nor adaptive length asked for", nodes)
    if speculative is None:
        raise _error("draft trees or adaptive length without --speculative-config", nodes)
    if speculative.method not in METHODS:
        raise _error(f"draft trees or adaptive length with the speculative method {speculative.method!r}", nodes)
    if parallel.worker_cls != WORKER:
        raise _error(f"draft trees or adaptive length with --worker-cls {parallel.worker_cls}", nodes)
    if drafting.shape.kind == "chain" and getattr(vllm_config, "use_v2_model_runner", False):
        raise _error("adaptive length of chains with vLLM's V2 model runner (VLLM_USE_V2_MODEL_RUNNER=0 is V1)", nodes)
    for found in _unsuited(vllm_config):
        raise _error(f"draft trees or adaptive length {found}", nodes)
    return drafting


def _unsuited(vllm_config: Any) -> list[str]:
    """What trees cannot work with, in words."""
    model, parallel, speculative = (
        vllm_config.model_config,
        vllm_config.parallel_config,
        vllm_config.speculative_config,
    )
    found = {
        "with pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "with context parallelism": parallel.decode_context_parallel_size > 1,
        "with micro-batches (DBO)": bool(getattr(parallel, "enable_dbo", False)),
        "for a multimodal target": bool(model.is_multimodal_model),
        "for a target with recurrent (Mamba, linear attention) layers, whose state cannot take a rejected draft back": (
            bool(model.is_hybrid) or bool(model.is_attention_free) or bool(model.has_inner_state)
        ),
        "for a target with M-RoPE positions": bool(model.uses_mrope),
        "with a head that drafts all positions at once": bool(getattr(speculative, "parallel_drafting", False)),
        "with draft_sample_method 'probabilistic' (a tree's drafts are the head's best)": (
            getattr(speculative, "draft_sample_method", "greedy") == "probabilistic"
        ),
        "with synthetic acceptance": getattr(speculative, "rejection_sample_method", "") == "synthetic",
        "with disable_padded_drafter_batch": bool(getattr(speculative, "disable_padded_drafter_batch", False)),
        "with num_speculative_tokens_per_batch_size": bool(
            getattr(speculative, "num_speculative_tokens_per_batch_size", None)
        ),
        "with a KV connector: it reads keys and values before those of accepted drafts are moved": (
            vllm_config.kv_transfer_config is not None
        ),
    }
    v2 = getattr(vllm_config, "use_v2_model_runner", False)
    found |= _unsuited_to_v2(vllm_config) if v2 else _unsuited_to_v1(vllm_config)
    return [words for words, wrong in found.items() if wrong]


def _unsuited_to_v1(vllm_config: Any) -> dict[str, bool]:
    mode = vllm_config.compilation_config.cudagraph_mode
    return {
        "with asynchronous scheduling": bool(vllm_config.scheduler_config.async_scheduling),
        "with full CUDA graphs (pass -cc.cudagraph_mode=PIECEWISE)": mode is not None and mode.has_full_cudagraphs(),
    }


def _unsuited_to_v2(vllm_config: Any) -> dict[str, bool]:
    model, parallel, mode = (
        vllm_config.model_config,
        vllm_config.parallel_config,
        vllm_config.compilation_config.cudagraph_mode,
    )
    return {
        "with data parallelism": parallel.data_parallel_size > 1,
        "with prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "with batch-sharded sampling": bool(getattr(parallel, "enable_batch_sharded_sampling", False)),
        "with watermarks": getattr(vllm_config, "watermark_config", None) is not None,
        "with return_sampling_mask": bool(getattr(model, "return_sampling_mask", False)),
        "with trace replay": bool(getattr(model, "enable_trace_replay", False)),
        "with CUDA graphs of mixed batches (pass -cc.cudagraph_mode=FULL_AND_PIECEWISE)": (
            mode is not None and mode.has_full_cudagraphs() and not mode.separate_routine()
        ),
    }


def _error(found: str, nodes: int) -> UsageError:
    return UsageError(found, "A whole command that works", example(nodes))
