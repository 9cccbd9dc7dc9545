"""Prompts to measure with, in the shapes that vLLM's own benchmark reads, and 80 questions of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HeadError, UsageError

BUILTIN = "builtin"
SHAPES = (
    'one JSON object a line with "prompt", "messages", "turns", "conversations" or "prompt_token_ids"; a JSON list '
    "of such objects (ShareGPT); or text, one prompt a line"
)


@dataclass(frozen=True)
class Question:
    """One question: a text or tokens to continue, or a conversation of one turn or several.

    Attributes:
        messages: the conversation up to the first answer; the chat template is applied to it.
        later: what the user says in later turns, each behind the model's own answer.
        prompt: text to continue as it is, in place of `messages`.
        token_ids: tokens to continue, in place of both.
    """

    index: int
    id: str
    category: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    later: tuple[str, ...] = ()
    prompt: str | None = None
    token_ids: tuple[int, ...] | None = None

    @property
    def turns(self) -> int:
        return 1 + len(self.later)


def read_prompts(source: str, limit: int | None = None) -> list[Question]:
    """The questions of a file, of a data set on the hub, or `builtin`.

    Raises:
        UsageError: nothing there, nothing in it, or a line that is none of the known shapes.
    """
    if source == BUILTIN:
        lines = _jsonl(Path(__file__).with_name("questions.jsonl"))
    elif Path(source).is_file():
        lines = _read(Path(source))
    elif Path(source).exists() or not _looks_like_hub(source):
        raise UsageError(
            f"there is no prompt file {source}", f"Expected: {SHAPES}", f"Or leave --prompts out for the {BUILTIN} set"
        )
    else:
        lines = (line for file in _download(source) for line in _read(file))
    questions: list[Question] = []
    for where, value in lines:
        questions.append(_question(len(questions), value, where))
        if limit is not None and len(questions) == limit:
            break
    if not questions:
        raise UsageError(f"{source} has no prompts", f"Expected: {SHAPES}")
    return questions


def first_turns(questions: list[Question]) -> list[Question]:
    """The questions without their later turns."""
    return [Question(q.index, q.id, q.category, q.messages, (), q.prompt, q.token_ids) for q in questions]


def fingerprint(questions: list[Question]) -> str:
    """sha256 of all that is asked, so that two runs can be told to have asked the same."""
    asked = [(q.messages, q.later, q.prompt, q.token_ids) for q in questions]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _read(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".txt":
        lines = _text(file).splitlines()
        return ((f"{file}:{n}", {"prompt": line}) for n, line in enumerate(lines, 1) if line.strip())
    text = _text(file)
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{file} is not JSON: {error}", f"Expected: {SHAPES}") from None
        return ((f"{file}, entry {n}", value) for n, value in enumerate(values))
    return _jsonl(file)


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    for n, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"{file}:{n}", json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file}:{n} is not JSON: {error}", f"Expected: {SHAPES}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", f"Expected: {SHAPES}") from None


def _question(index: int, value: Any, where: str) -> Question:
    def refuse(what: str) -> UsageError:
        return UsageError(f"{where}: {what}", f"Expected: {SHAPES}")

    if not isinstance(value, dict):
        raise refuse(f"a {type(value).__name__}")
    base: dict[str, Any] = {
        "index": index,
        "id": str(value.get("question_id", value.get("id", index))),
        "category": str(value.get("category") or ""),
    }
    if _strings(value.get("turns")):
        first, *later = value["turns"]
        return Question(**base, messages=({"role": "user", "content": first},), later=tuple(later))
    if isinstance(messages := value.get("messages"), list) and messages:
        if not all(isinstance(m, dict) and isinstance(m.get("role"), str) and m.get("content") for m in messages):
            raise refuse('a message without "role" or "content"')
        while messages and messages[-1]["role"] == "assistant":  # an answer of somebody else's is not asked for
            messages = messages[:-1]
        if not messages:
            raise refuse("messages that nobody but the assistant wrote")
        return Question(**base, messages=tuple(messages))
    if isinstance(said := value.get("conversations"), list):
        human: Any = [s.get("value") for s in said if isinstance(s, dict) and s.get("from") in ("human", "user")]
        if not _strings(human):
            raise refuse("a conversation in which no human says anything")
        return Question(**base, messages=({"role": "user", "content": human[0]},), later=tuple(human[1:]))
    if isinstance(prompt := value.get("prompt"), str) and prompt:
        return Question(**base, prompt=prompt)
    ids = value.get("prompt_token_ids")
    if isinstance(ids, list) and ids and all(isinstance(i, int) and i >= 0 for i in ids):
        return Question(**base, token_ids=tuple(ids))
    raise refuse(f"an object with {', '.join(sorted(map(str, value))) or 'nothing'} in it, or an empty prompt")


def _strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(s, str) and s for s in value)


def _looks_like_hub(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest) and "/" not in rest and not owner.startswith((".", "~")) and "." not in rest


def _download(name: str) -> list[Path]:
    """The JSON and text files of a data set on the hub."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        files = HfApi().list_repo_files(name, repo_type="dataset")
        wanted = sorted(file for file in files if file.endswith((".jsonl", ".json", ".txt")))
        paths = [Path(hf_hub_download(name, file, repo_type="dataset")) for file in wanted]
    except Exception as error:  # the hub's client raises many kinds; all mean that there are no prompts
        reason = str(error).strip().splitlines()
        raise HeadError(
            f"the data set {name} could not be had from the hub: {reason[0] if reason else type(error).__name__}",
            "",
            "Pass a local file to --prompts",
        ) from None
    if not paths:
        raise UsageError(f"the data set {name} has no JSON or text files", f"Expected: {SHAPES}")
    return paths
