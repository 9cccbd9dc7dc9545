"""A mixed load: prompts of random lengths, each with sampling settings, and what plain decoding answers to them.

What is asked is a fixed list, so that plain decoding has to answer each only once: an answer cut to fewer tokens
is the beginning of the longest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_eagle_plugin.benchmarks.compare import first_difference
from vllm_eagle_plugin.benchmarks.prompts import Question

from .clients import HangsUp, Request

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
GREEDY: dict[str, Any] = {"temperature": 0.0}
#: Settings of each kind of request, and how many of twenty are of it. Structured ones have a client of their own.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "greedy": (8, GREEDY),
    "greedy, logprobs": (2, GREEDY | {"logprobs": 3}),
    "greedy, penalties": (2, GREEDY | {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.2}),
    "greedy, min_tokens": (1, GREEDY | {"min_tokens": 24}),
    "seeded, top-p": (2, {"temperature": 0.8, "top_p": 0.9, "seed": 7}),
    "seeded, top-k and min-p": (2, {"temperature": 1.0, "top_k": 40, "min_p": 0.05, "seed": 8}),
    "seeded, penalties": (1, {"temperature": 0.7, "frequency_penalty": 0.5, "seed": 9}),
    "sampled": (2, {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.2}),
}
STRUCTURED: dict[str, dict[str, Any]] = {
    "greedy, structured": GREEDY | {"response_format": _FORMAT},
    "seeded, structured": {"temperature": 0.8, "seed": 10, "response_format": _FORMAT},
}
#: Alternatives that plain decoding's answers carry at each token, to tell how close a decision was.
ALTERNATIVES = 5


@dataclass(frozen=True)
class Entry:
    """Something to ask."""

    index: int
    kind: str
    prompt: list[int]
    settings: dict[str, Any]

    @property
    def greedy(self) -> bool:
        return self.settings["temperature"] == 0

    @property
    def known(self) -> bool:
        """Whether plain decoding gives the same tokens each time."""
        return self.greedy or "seed" in self.settings

    @property
    def structured(self) -> bool:
        return self.kind in STRUCTURED

    def request(self, chance: random.Random, longest: int, hanging_up: float) -> Request:
        """This entry with a random length; of those given up, some before they have got anything."""
        if chance.random() < hanging_up:
            when: HangsUp = "before a chunk" if chance.random() < 0.5 else "after a chunk"
            return Request(self.prompt, longest, self.settings, when)
        fewest = max(1, self.settings.get("min_tokens", 1))
        return Request(self.prompt, chance.randint(fewest, longest), self.settings)


def build(questions: Sequence[Question], tokenizer: Any, count: int, longest_prompt: int, seed: int) -> list[Entry]:
    """`count` entries of the kinds in their shares, and a tenth as many structured ones behind them."""
    chance = random.Random(seed)
    said = [q.prompt or q.messages[-1]["content"] for q in questions if q.prompt or q.messages]
    kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(share)]
    chosen = [(kind, KINDS[kind][1]) for kind in (kinds[i % len(kinds)] for i in range(count))]
    structured = list(STRUCTURED.items())
    chosen += [structured[i % len(structured)] for i in range(max(2, count // 10))]
    entries = []
    for index, (kind, settings) in enumerate(chosen):
        # Mostly one question, sometimes a dozen: prompts of one chunk and of several.
        text = "\n".join(chance.choices(said, k=min(12, 1 + int(chance.expovariate(0.5)))))
        if kind in STRUCTURED:
            text = f"Invent a person who could say this: {text[:200]} Answer in JSON with name, age and likes."
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        entries.append(Entry(index, kind, tokens[-longest_prompt:], settings))
    return entries


@dataclass(frozen=True)
class Plain:
    """Plain decoding's longest answer to an entry.

    Attributes:
        tokens: [n].
        alternatives: [n] log-probability by token of the likeliest ones, as they were sampled from.
    """

    tokens: list[int]
    alternatives: list[dict[int, float]]

    @classmethod
    def of(cls, choice: dict[str, Any]) -> Plain:
        """From an answer to `with_alternatives`' settings."""
        by_name = choice["logprobs"]["top_logprobs"]
        return cls(
            choice["token_ids"],
            [{int(n.removeprefix("token_id:")): value for n, value in (at or {}).items()} for at in by_name],
        )


def with_alternatives(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose answer also carries what `Plain` needs."""
    return settings | {"logprobs": ALTERNATIVES, "return_tokens_as_token_ids": True}


@dataclass(frozen=True)
class Difference:
    """Where an answer leaves plain decoding's.

    `gap` is by how much plain decoding preferred its own token there, in log-probability; None if the other was
    not among its likeliest, or nothing was left to compare.
    """

    kind: str
    entry: int
    position: int
    plain: int | None
    found: int | None
    gap: float | None

    def tie(self, within: float) -> bool:
        """Whether rounding explains it."""
        return self.gap is not None and self.gap <= within


def compare(entry: Entry, plain: Plain, found: list[int], max_tokens: int) -> Difference | None:
    """The first difference from plain decoding's answer, if there is one."""
    expected = plain.tokens[:max_tokens]
    if (at := first_difference(expected, found)) is None:
        return None
    known = plain.alternatives[at] if at < len(expected) else {}
    ours, theirs = _item(expected, at), _item(found, at)
    gap = known[ours] - known[theirs] if ours in known and theirs in known else None
    return Difference(entry.kind, entry.index, at, ours, theirs, gap)


def fault(entry: Entry, choice: dict[str, Any], max_tokens: int) -> str | None:
    """What is wrong with an answer whatever was sampled, in words."""
    tokens, reason = choice["token_ids"], choice["finish_reason"]
    if reason not in ("stop", "length"):
        return f"finish_reason {reason}"
    if len(tokens) > max_tokens or (reason == "length" and len(tokens) != max_tokens):
        return f"{len(tokens)} tokens where {max_tokens} were asked for, finish_reason {reason}"
    if len(tokens) < entry.settings.get("min_tokens", 0):
        return f"{len(tokens)} tokens, fewer than min_tokens"
    if "logprobs" in entry.settings and len(choice["logprobs"]["token_logprobs"]) != len(tokens):
        return f"{len(choice['logprobs']['token_logprobs'])} logprobs for {len(tokens)} tokens"
    return structured_fault(choice["text"]) if entry.structured and reason == "stop" else None


def structured_fault(text: str) -> str | None:
    """What is wrong with a whole structured answer."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"a structured answer is not JSON ({error}): {text[:200]}"
    if not isinstance(value, dict) or sorted(value) != sorted(SCHEMA["required"]) or not isinstance(value["age"], int):
        return f"a structured answer is not as its schema says: {text[:200]}"
    return None


def logprob_error(plain: Plain, choice: dict[str, Any]) -> float:
    """The largest difference between an answer's log-probabilities and plain decoding's, over the same tokens."""
    worst = 0.0
    pairs = zip(
        plain.tokens, plain.alternatives, choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=False
    )
    for expected, known, token, value in pairs:
        if expected != token:
            break
        worst = max(worst, abs(known[token] - value))
    return worst


def _item(tokens: list[int], at: int) -> int | None:
    return tokens[at] if at < len(tokens) else None
