"""Where prompts come from: a file, a data set, or the target itself."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HeadError, UsageError
from ..lines import numbered_lines

_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
#: Columns of data sets that hold a user's turn, in the order they are looked for.
_COLUMNS = ("messages", "conversations", "turns", "prompt", "instruction", "question", "query", "text")
#: Roles under which published conversations keep the user's turns.
_USERS = ("user", "human")


@dataclass(frozen=True)
class ChatFrame:
    """Tokens before a user turn, between it and the answer, and those that end a turn."""

    before: list[int]
    after: list[int]
    stops: list[int]

    @classmethod
    def of(cls, tokenizer: Any) -> ChatFrame:
        """The frame that the tokenizer's chat template puts around a user turn.

        Raises:
            HeadError: there is no template, or none that carries a user turn as it is.
        """
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
            )
            before, after = text.split(_MARK)
        except (ValueError, AttributeError, TypeError) as error:
            raise HeadError(
                f"the target has no usable chat template: {str(error).splitlines()[0]}",
                "Conversations are written in the form the target was tuned to",
                "Put its chat_template.jinja or tokenizer_config.json beside its weights",
            ) from None
        encode = lambda s: tokenizer(s, add_special_tokens=False)["input_ids"]  # noqa: E731
        bridge = encode(after)
        stops = {tokenizer.eos_token_id, bridge[0] if bridge else None} - {None}
        return cls(encode(before), bridge, sorted(stops))


def encode_turn(tokenizer: Any, frame: ChatFrame, turn: str) -> list[int]:
    """A user turn as the whole prompt in front of its answer."""
    return frame.before + tokenizer(turn, add_special_tokens=False)["input_ids"] + frame.after


def file_turns(file: Path) -> Iterator[str]:
    """First user turns of a file: JSON lines with prompt, messages or turns, or plain text, one a line.

    Raises:
        HeadError: a line is neither.
    """
    try:
        lines = list(numbered_lines(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "A file of prompts was expected") from None
    for number, line in lines:
        if file.suffix not in (".jsonl", ".json"):
            yield line.strip()
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise HeadError(
                f"line {number} of {file} is no JSON: {error}", "One JSON object a line was expected"
            ) from None
        turn = first_turn(row) if isinstance(row, dict) else None
        if turn is None:
            raise HeadError(
                f"line {number} of {file} holds no user turn",
                "An object with `prompt`, `messages` or `turns` was expected",
            )
        yield turn


def dataset_turns(name: str, split: str) -> Iterator[str]:
    """First user turns of a data set by the name (or folder) that `datasets.load_dataset` takes.

    Raises:
        UsageError: `datasets` is not installed, there is no such data set, or it has no known column.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UsageError("--dataset needs the package `datasets`, which is not installed", "", "pip install datasets")
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        first = next(iter(rows), None)
    except Exception as error:  # a hub, its network and loading code: anything at all
        raise UsageError(
            f"the data set {name} cannot be loaded: {' '.join(str(error).split())[:300]}",
            "A name or folder that datasets.load_dataset takes was expected",
        ) from None
    if first is None or first_turn(first) is None:
        raise UsageError(
            f"rows of {name} have the columns {', '.join(first or {})}", f"One of {', '.join(_COLUMNS)} was expected"
        )
    for row in rows:
        turn = first_turn(row)
        if turn:
            yield turn


def first_turn(row: dict[str, Any]) -> str | None:
    """The first user turn in a row of any common form."""
    for column in _COLUMNS:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            extra = row.get("input") if column == "instruction" else None  # Alpaca's second part
            return value.strip() + (f"\n\n{extra.strip()}" if isinstance(extra, str) and extra.strip() else "")
        if not isinstance(value, list) or not value:
            continue
        if isinstance(value[0], str):
            return value[0].strip() or None
        for message in value:
            role = message.get("role", message.get("from")) if isinstance(message, dict) else None
            text = message.get("content", message.get("value")) if isinstance(message, dict) else None
            if role in _USERS and isinstance(text, str) and text.strip():
                return text.strip()
    return None
