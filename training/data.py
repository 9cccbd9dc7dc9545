"""Training text that the target writes itself.

A head must predict what *this* target says, so its own answers are the right data. Prompts come from a
file, a data set, or the target: a chat model sampled behind its template's user header writes plausible
user turns.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..errors import HeadError, UsageError
from ..targets.prompts import ChatFrame, dataset_turns, file_turns
from ..targets.target import read_target
from .corpus import MANIFEST, check_written_by, read_shard, shard_files
from .files import disk_errors, read_json, replaced, write_json
from .generate import Generator, open_generator
from .sources import GivenTurns, SelfWritten, Source
from .teacher import identify

#: Answer tokens below which compiling the engine first takes longer than it saves.
_WORTH_COMPILING = 100_000


@dataclass(frozen=True)
class DataSettings:
    """How conversations are written; the same for all shards of a folder."""

    #: File of prompts, name of a data set, or neither: the target writes the user turns.
    prompts: str | None = None
    dataset: str | None = None
    split: str = "train"
    #: Answers at temperature 0, and the temperature of the others: served traffic has both.
    greedy_share: float = 0.7
    temperature: float = 0.8
    question_tokens: int = 160
    answer_tokens: int = 320
    per_shard: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts is not None and self.dataset is not None:
            raise UsageError("--prompts and --dataset were both given", "One source of prompts was expected")
        if not 0 <= self.greedy_share <= 1:
            raise UsageError(f"--greedy-share is {self.greedy_share}", "A share from 0 to 1 was expected")
        if self.temperature <= 0:
            raise UsageError(f"--temperature is {self.temperature}", "A number above 0 was expected")


@dataclass(frozen=True)
class Shard:
    """One shard as written, and how much the folder holds with it."""

    number: int
    conversations: int
    answer_tokens: int
    total_tokens: int
    #: True for shards that an earlier run wrote.
    found: bool


class DataWriter:
    """Writes shards into a folder until they hold enough; goes on where an earlier run stopped."""

    def __init__(
        self,
        target_name: str,
        folder: Path,
        settings: DataSettings,
        backend: str = "auto",
        batch: int = 0,
        precision: str = "bf16",
    ) -> None:
        target = read_target(target_name)
        self.folder, self.settings = folder, settings
        self._open_folder(identify(target))
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(target.folder)
        except (OSError, ValueError) as error:
            raise HeadError(
                f"the target {target_name} has no usable tokenizer: {str(error).splitlines()[0]}",
                "Its tokenizer files were expected beside its weights",
            ) from None
        self.frame = ChatFrame.of(self.tokenizer)
        self._target, self._backend, self._batch, self._precision = target, backend, batch, precision

    def write(self, tokens: int) -> Iterator[Shard]:
        """Write until the folder holds `tokens` answer tokens or prompts run out; yields every shard.

        Raises:
            HeadError: the disk is full, or the target wrote nothing usable. Whole shards are kept, and
                the same call goes on behind them.
        """
        turns, total, number = self._turns(), 0, 0
        seen: set[tuple[int, ...]] = set()
        for file in shard_files(self.folder):
            if int(file.stem.removeprefix("shard")) != number:
                raise HeadError(f"{self.folder} lacks shard {number} before {file.name}", "", "Put it back")
            rows = read_shard(file)
            seen.update(tuple(c.prompt.tolist()) for c in rows)
            written = sum(len(c.answer) for c in rows)
            total, number = total + written, number + 1
            yield Shard(number - 1, len(rows), written, total, True)
        if total >= tokens:
            return
        generator = open_generator(
            self._backend,
            str(self._target.folder),
            self._batch,
            self._length(self._target.config),
            self._precision,
            eager=tokens - total < _WORTH_COMPILING,
        )
        source = self._source(generator, turns, seen)
        while total < tokens and (prompts := source(number)):
            shard = self._shard(generator, number, prompts, total)
            total, number = shard.total_tokens, number + 1
            yield shard

    def _shard(self, generator: Generator, number: int, prompts: list[list[int]], total: int) -> Shard:
        settings, chance = self.settings, random.Random(self.settings.seed * 1_000_003 + number)
        temperatures = [0.0 if chance.random() < settings.greedy_share else settings.temperature for _ in prompts]
        seed = settings.seed + 2 * number + 1
        answers = generator(prompts, temperatures, settings.answer_tokens, self.frame.stops, seed)
        rows = [
            {"prompt": p, "answer": a, "temperature": t}
            for p, a, t in zip(prompts, answers, temperatures, strict=True)
            if a
        ]
        kept = f"The {number} shards before it are whole. Make room and run the same command again to go on"
        with disk_errors(self.folder, kept), replaced(self.folder / f"shard{number:04d}.jsonl") as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        written = sum(len(a) for a in answers)
        return Shard(number, len(rows), written, total + written, False)

    def _source(self, generator: Generator, turns: Iterator[str] | None, seen: set[tuple[int, ...]]) -> Source:
        settings = self.settings
        if turns is None:
            longest = settings.question_tokens
            return SelfWritten(generator, self.frame, settings.per_shard, longest, settings.seed, seen)
        return GivenTurns(turns, self.tokenizer, self.frame, settings.per_shard, self._longest_prompt, seen)

    def _turns(self) -> Iterator[str] | None:
        if self.settings.prompts is not None:
            return iter(list(file_turns(Path(self.settings.prompts))))  # a bad line is found before anything is written
        if self.settings.dataset is not None:
            return dataset_turns(self.settings.dataset, self.settings.split)
        return None

    @property
    def _longest_prompt(self) -> int:
        return 4 * self.settings.question_tokens

    def _length(self, config: Any) -> int:
        """Longest sequence that is written."""
        frame = len(self.frame.before) + len(self.frame.after)
        wanted = self._longest_prompt + self.settings.answer_tokens + frame
        return min(wanted, config.max_position_embeddings or wanted)

    def _open_folder(self, identity: dict[str, Any]) -> None:
        manifest, settings = self.folder / MANIFEST, asdict(self.settings)
        if manifest.exists():
            check_written_by(self.folder, identity)
            found = read_json(manifest, "The manifest of a data folder").get("settings")
            if found != settings:
                differing = [k for k in settings if not isinstance(found, dict) or found.get(k) != settings[k]]
                raise UsageError(
                    f"{self.folder} was written with other settings ({', '.join(differing) or 'unknown ones'})",
                    "All shards of a folder are written alike",
                    "Choose another --output",
                )
            return
        if shard_files(self.folder):
            raise UsageError(f"{self.folder} has shards but no {MANIFEST}", "It says who wrote them", "Put it back")
        with disk_errors(manifest, "Nothing was written. Choose another --output"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(manifest, {"target": identity, "settings": settings})
