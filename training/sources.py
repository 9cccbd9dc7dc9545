"""Prompts for one shard after another, none of them twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from ..errors import HeadError
from ..targets.prompts import ChatFrame, encode_turn
from .generate import Generator

#: Temperature at which a target writes user turns: high, for variety.
_ASKING = 0.9
#: Fruitless tries after which a target is taken to be unable to ask.
_TRIES = 3


class Source(Protocol):
    """Gives the prompts (token ids) of shard `number`; none when there are no more."""

    def __call__(self, number: int) -> list[list[int]]: ...


class GivenTurns:
    """User turns from a file or a data set, in order. Those in `seen` and those too long are passed over."""

    def __init__(
        self,
        turns: Iterator[str],
        tokenizer: Any,
        frame: ChatFrame,
        count: int,
        longest: int,
        seen: set[tuple[int, ...]],
    ) -> None:
        self._fresh = _fresh((encode_turn(tokenizer, frame, turn) for turn in turns), longest, seen)
        self._count = count

    def __call__(self, number: int) -> list[list[int]]:
        return list(islice(self._fresh, self._count))


class SelfWritten:
    """User turns that the target writes, sampled behind its template's user header."""

    def __init__(
        self, generator: Generator, frame: ChatFrame, count: int, longest: int, seed: int, seen: set[tuple[int, ...]]
    ) -> None:
        self._generator, self._frame, self._count = generator, frame, count
        self._longest, self._seed, self._seen = longest, seed, seen

    def __call__(self, number: int) -> list[list[int]]:
        """Raises `HeadError` when the target writes nothing usable or nothing new."""
        frame = self._frame
        for tried in range(_TRIES):
            seed = self._seed + 2 * (number + tried)
            asked = self._generator(
                [frame.before] * self._count, [_ASKING] * self._count, self._longest, frame.stops, seed
            )
            # A turn that ended by itself and says something.
            turns = [tokens[:-1] for tokens in asked if len(tokens) > 4 and tokens[-1] in frame.stops]
            prompts = [frame.before + turn + frame.after for turn in turns]
            if found := list(_fresh(iter(prompts), None, self._seen)):
                return found
        raise HeadError(
            f"the target wrote no new user turn in {_TRIES} times {self._count} tries",
            "Text that ends with its turn marker was expected behind the user header",
            "Give it prompts: --prompts FILE, or --dataset NAME",
        )


def _fresh(prompts: Iterator[list[int]], longest: int | None, seen: set[tuple[int, ...]]) -> Iterator[list[int]]:
    for prompt in prompts:
        if tuple(prompt) not in seen and (longest is None or len(prompt) <= longest):
            seen.add(tuple(prompt))
            yield prompt
