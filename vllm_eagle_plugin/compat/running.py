"""Inside a running engine of this process: vLLM has no public way in. Whoever measures or watches goes through here."""

from __future__ import annotations

from typing import Any


def core_of(llm: Any) -> Any:
    """The engine core of an `LLM`.

    Raises:
        AttributeError: it is in another process, or this vLLM is built differently.
    """
    return llm.llm_engine.engine_core.engine_core


def runner_of(llm: Any) -> Any:
    """The model runner of an `LLM`; raises as `core_of`."""
    return core_of(llm).model_executor.driver_worker.worker.model_runner


def step_parts(llm: Any) -> dict[str, tuple[Any, str]]:
    """The calls that make up a step: part -> its owner and the method's name.

    Raises:
        AttributeError: as `core_of`, or one of them is not there.
    """
    scheduler, runner = core_of(llm).scheduler, runner_of(llm)
    parts = {"schedule": (scheduler, "schedule"), "book": (scheduler, "update_from_output")}
    parts |= {"execute": (runner, "execute_model"), "sample": (runner, "sample_tokens")}
    if llm.llm_engine.vllm_config.speculative_config is not None:
        parts["draft"] = (runner, "propose_draft_token_ids")
    for owner, name in parts.values():
        getattr(owner, name)
    return parts
