"""Conversations on disk, and the steps of training made of them.

A data folder holds `manifest.json` (which target wrote it, and how) and shards of JSON lines with
`prompt` and `answer` as token ids and the `temperature` the answer was sampled at.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import HeadError
from ..lines import numbered_lines
from .files import read_json
from .recipe import Batch
from .teacher import same_target

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Conversation:
    """A prompt (chat template included) and the target's answer, as token ids."""

    prompt: np.ndarray
    answer: np.ndarray
    temperature: float

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def ids(self, length: int) -> np.ndarray:
        """Prompt and answer, cut to `length` tokens."""
        return np.concatenate((self.prompt, self.answer))[:length]


class MicroBatch(NamedTuple):
    """ids [B, T] padded on the right, which of them [B, T] are answers, and the places [N, 2] (sequence, position)
    whose next token is one: known before the batch is on its device, so that no step asks for them there."""

    ids: Tensor
    answers: Tensor
    places: Tensor

    @classmethod
    def of(cls, ids: Tensor, answers: Tensor) -> MicroBatch:
        return cls(ids, answers, answers[:, 1:].nonzero())

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class Corpus:
    """What a run learns from and what it is measured on."""

    train: list[Conversation]
    held_out: list[Conversation]
    #: Tells this data from any other.
    digest: str

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each token [V] stands in answers."""
        counts = np.zeros(vocab_size, np.int64)
        for conversation in self.train:
            counts += np.bincount(conversation.answer, minlength=vocab_size)
        return torch.from_numpy(counts)

    @property
    def answer_tokens(self) -> int:
        return sum(len(c.answer) for c in self.train)


def shard_files(folder: Path) -> list[Path]:
    """The shards of a data folder, in order."""
    return sorted(folder.glob("shard*.jsonl"))


def read_shard(file: Path) -> list[Conversation]:
    """The conversations of one shard.

    Raises:
        HeadError: a line is not a conversation.
    """
    conversations = []
    for number, line in numbered_lines(file):
        try:
            row = json.loads(line)
            prompt, answer = (np.asarray(row[key], np.int32) for key in ("prompt", "answer"))
            if prompt.ndim != 1 or answer.ndim != 1 or not len(prompt) or not len(answer):
                raise ValueError("prompt and answer must be lists of token ids")
            conversations.append(Conversation(prompt, answer, float(row["temperature"])))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise HeadError(
                f"line {number} of {file} is no conversation: {error}",
                "A JSON object with prompt, answer and temperature was expected",
                "Remove the shard and run `vllm-eagle train data` again",
            ) from None
    return conversations


def check_written_by(folder: Path, identity: dict[str, Any]) -> None:
    """Raise `HeadError` unless the target of this `identity` wrote the data in `folder`."""
    manifest = read_json(folder / MANIFEST, "The manifest of `vllm-eagle train data`")
    writer = manifest.get("target")
    if not isinstance(writer, dict) or not same_target(writer, identity):
        named = writer.get("name") if isinstance(writer, dict) else None
        raise HeadError(
            f"the data in {folder} were written by {named!r}, whose weights are not those of {identity['name']!r}",
            "A head learns what its own target says",
            "Pass that target, or write data with this one: vllm-eagle train data --target ... -o ANOTHER_FOLDER",
        )


def read_corpus(folders: Sequence[Path], identity: dict[str, Any], held_out: int) -> Corpus:
    """All conversations in `folders`; of each the last greedy ones of the first shard are held out.

    They stay the same when shards are added. Acceptance is measured on those of the first folder.
    """
    first, *others = (_read_folder(folder, identity, held_out) for folder in folders)
    if not others:
        return first
    digest = hashlib.sha256("".join(c.digest for c in (first, *others)).encode()).hexdigest()
    return Corpus([c for corpus in (first, *others) for c in corpus.train], first.held_out, digest)


def _read_folder(folder: Path, identity: dict[str, Any], held_out: int) -> Corpus:
    """The conversations of one folder.

    Raises:
        HeadError: no data, damaged data, or data of another target.
    """
    files = shard_files(folder)
    if not files:
        raise HeadError(
            f"{folder} holds no shards",
            "Conversations of the target were expected",
            "Run `vllm-eagle train data` first",
        )
    check_written_by(folder, identity)
    digest, train = hashlib.sha256(), []
    first = read_shard(files[0])
    greedy = [i for i, c in enumerate(first) if c.temperature == 0][-held_out:]
    if not greedy:
        raise HeadError(
            f"{files[0].name} has no greedy answers",
            "Acceptance is measured on held-out greedy ones",
            "Write data with a --greedy-share above 0",
        )
    kept = set(greedy)
    for file in files:
        digest.update(file.read_bytes())
        rows = first if file == files[0] else read_shard(file)
        train += [c for i, c in enumerate(rows) if file != files[0] or i not in kept]
    if not train:
        raise HeadError(
            f"{folder} holds {len(greedy)} conversations, all of them held out",
            "More than recipe.held_out were expected",
            "Write more data, or pass a smaller --set held_out=N",
        )
    vocab = identity["vocab_size"]
    worst = max((int(max(c.prompt.max(), c.answer.max())) for c in (*train, *(first[i] for i in greedy))), default=0)
    if worst >= vocab:
        raise HeadError(f"the data in {folder} have token {worst}", f"Tokens below {vocab} were expected")
    return Corpus(train, [first[i] for i in greedy], digest.hexdigest())


def plan_steps(conversations: Sequence[Conversation], batch: Batch, seed: int) -> list[list[list[int]]]:
    """One epoch: the conversations of each micro-batch of each step, in an order that `seed` decides.

    Alike lengths go together, so that little is padded. What does not fill a last step is left out (the
    next epoch mixes anew).
    """
    budget = batch.tokens // batch.micro_batches
    chance = random.Random(seed)
    order = list(range(len(conversations)))
    chance.shuffle(order)  # so that ties fall differently each time
    order.sort(key=lambda i: min(len(conversations[i]), batch.length))
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * min(len(conversations[i]), batch.length) > budget:
            groups.append([])
        groups[-1].append(i)
    chance.shuffle(groups)
    count = batch.micro_batches
    return [groups[at : at + count] for at in range(0, len(groups) - count + 1, count)]


def collate(conversations: Sequence[Conversation], length: int) -> MicroBatch:
    """Conversations side by side, padded with token 0."""
    rows = [c.ids(length) for c in conversations]
    width = max(map(len, rows))
    ids, answers = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), bool)
    for i, (conversation, row) in enumerate(zip(conversations, rows, strict=True)):
        ids[i, : len(row)] = row
        answers[i, len(conversation.prompt) : len(row)] = True
    return MicroBatch.of(torch.from_numpy(ids), torch.from_numpy(answers))


def counted_positions(batches: Sequence[MicroBatch], steps: int) -> Tensor:
    """How many predictions of each chain step [steps] count in `batches`: those of an answer token.

    Step j of the chain from position p predicts token p + 2 + j, so the first 2 + j tokens never count.
    """
    return torch.tensor([sum(int(b.answers[:, 2 + j :].sum()) for b in batches) for j in range(steps)])


def padded_batches(conversations: Sequence[Conversation], length: int, tokens: int) -> Iterator[list[Conversation]]:
    """Conversations by length, about `tokens` tokens at a time."""
    group: list[Conversation] = []
    for conversation in sorted(conversations, key=len):
        if group and (len(group) + 1) * min(len(conversation), length) > tokens:
            yield group
            group = []
        group.append(conversation)
    if group:
        yield group
