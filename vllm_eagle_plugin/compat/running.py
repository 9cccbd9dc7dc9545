"""Inside a running engine of this process: vLLM has no public way in. Whoever measures or watches goes through here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def core_of(llm: Any) -> Any:
    """The engine core of an `LLM`.

    Raises:
        AttributeError: it is in another process, or this vLLM is built differently.
    """
    return llm.llm_engine.engine_core.engine_core


def runner_of(llm: Any) -> Any:
    """The model runner of an `LLM`; raises as `core_of`."""
    return core_of(llm).model_executor.driver_worker.worker.model_runner


def drafter_of(llm: Any) -> Any:
    """What drafts: the V1 runner's proposer or V2's speculator, whose `propose` returns drafts [B, k] and whose
    `model`, if it has one, is the draft model. None without one; raises as `core_of`."""
    runner = runner_of(llm)
    return getattr(runner, "speculator", None) or getattr(runner, "drafter", None)


def proposed_from(runner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[str], Tensor]:
    """Requests of a call of the drafter's `propose`, and the last verified position [B] of each."""
    if hasattr(runner, "speculator"):
        batch, num_rejected = args[0], args[6]
        return batch.req_ids, batch.positions[sampled_rows_v2(batch, num_rejected)]
    rows = sampled_rows(kwargs["token_indices_to_sample"], kwargs["common_attn_metadata"])
    return runner.input_batch.req_ids, kwargs["target_positions"][rows]


def sampled_rows(token_indices_to_sample: Tensor | None, common_attn_metadata: Any) -> Tensor:
    """Rows [B] of each request's last verified position among the tokens of a step of the V1 runner."""
    if token_indices_to_sample is None:
        return common_attn_metadata.query_start_loc[1:] - 1
    return token_indices_to_sample


def sampled_rows_v2(input_batch: Any, num_rejected: Tensor) -> Tensor:
    """The same of a step of Model Runner V2."""
    requests = input_batch.num_reqs
    return input_batch.query_start_loc[1 : requests + 1].long() - 1 - num_rejected[:requests]


def step_parts(llm: Any) -> dict[str, tuple[Any, str]]:
    """The calls that make up a step: part -> its owner and the method's name.

    Raises:
        AttributeError: as `core_of`, or one of them is not there.
    """
    scheduler, runner = core_of(llm).scheduler, runner_of(llm)
    parts = {"schedule": (scheduler, "schedule"), "book": (scheduler, "update_from_output")}
    parts |= {"execute": (runner, "execute_model"), "sample": (runner, "sample_tokens")}
    if llm.llm_engine.vllm_config.speculative_config is not None:
        v2 = getattr(runner, "speculator", None)
        parts["draft"] = (runner, "propose_draft_token_ids") if v2 is None else (v2, "propose")
    for owner, name in parts.values():
        getattr(owner, name)
    return parts
