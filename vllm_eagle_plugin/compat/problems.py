"""What is wrong with the vLLM found here: kept when it is found, raised when a head of ours is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType

from ..errors import HeadError
from .versions import SUPPORTED, TESTED, dotted, found

logger = logging.getLogger("vllm.eagle_plugin")
_problem: str | None = None


def require() -> None:
    """Raise `HeadError` if this vLLM cannot serve our heads. Called only when one is asked for."""
    if _problem is not None:
        raise unsuited(_problem)


def unsuited(problem: str) -> HeadError:
    """The error that says so of this vLLM."""
    return HeadError(
        f"vllm-eagle-plugin cannot work with the vLLM found here ({found()}): {problem}",
        f"It needs vLLM {dotted(SUPPORTED[0])} to {dotted(SUPPORTED[1])}; its tests ran on {', '.join(TESTED)}",
        "Install one of these, or a newer vllm-eagle-plugin",
    )


def guarded(step: Callable[..., None], *arguments: ModuleType) -> None:
    """Run one step; what goes wrong is kept for `require`, the first of it."""
    global _problem
    try:
        step(*arguments)
    except HeadError as error:
        _problem = _problem or str(error).rstrip(".")
    except Exception as error:
        _problem = _problem or f"{type(error).__name__}: {error}"
