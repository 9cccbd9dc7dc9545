"""What the process that runs vLLM is told, and what it asks the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...targets.observer import Observer
from ..options import Options

#: Positions at which drafts are compared, at least.
POSITIONS = 200
_TURNS = (
    "Why is the sky blue?",
    "List three uses of a paper clip.",
    "What is the capital of Australia, and why is it not Sydney?",
    "Write a haiku about rain.",
    "How does a bicycle stay upright?",
    "Translate 'good morning' into French, German and Spanish.",
    "Give me a Python function that reverses a string.",
    "What should I cook with potatoes and eggs?",
)


@dataclass(frozen=True)
class Job:
    """One verification in vLLM."""

    head: str
    target: str
    converted: str
    options: dict[str, Any]
    config: str | None
    prompts: str | None
    method: str
    speculative: dict[str, Any]
    needs_plugin: bool
    #: Only whether vLLM runs the target, without any head.
    alone: bool = False

    def told(self) -> Options:
        """The options as they were."""
        given = dict(self.options)
        for name in ("aux_ids", "drop"):
            given[name] = None if given[name] is None else tuple(given[name])
        for name in ("embedding", "token_map"):
            given[name] = None if given[name] is None else Path(given[name])
        return Options(**given)


def prompts_for(observer: Observer, turns: list[str]) -> list[list[int]]:
    """Eight prompts: user turns where the target has a tokenizer, random tokens where it has none."""
    if turns or observer.tokenizer is not None:
        return observer.prompts(turns[:8] or _TURNS)
    return observer.own_prompts(8, length=8)
