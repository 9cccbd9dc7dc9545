"""vLLM's front end: what `vllm serve` checks before it loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import vllm_eagle_plugin
from vllm_eagle_plugin.errors import HeadError


def front_end(
    target: Path, head: Path | None, k: int = 1, options: dict[str, Any] | None = None, **speculative: Any
) -> Any:
    """What `vllm serve` does first: the settings checked, nothing loaded."""
    vllm_eagle_plugin.register()
    from vllm.engine.arg_utils import EngineArgs

    settings = {"model": str(head), "num_speculative_tokens": k, **speculative} if head is not None else None
    return EngineArgs(
        model=str(target), speculative_config=settings, skip_tokenizer_init=True, max_model_len=256, **(options or {})
    ).create_engine_config()


def assert_refused(what: tuple[str, ...], *arguments: Any, **speculative: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        front_end(*arguments, **speculative)
    (problem,) = caught.value.errors()
    error = problem["ctx"]["error"]
    assert isinstance(error, HeadError), f"not our error: {error!r}"
    assert error.found
    assert error.expected
    assert "\n" not in str(error)
    for part in what:
        assert part in str(error)
