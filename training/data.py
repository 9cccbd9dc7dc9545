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

from ..conversion.target import read_target
from ..errors import HeadError, UsageError
from .corpus import MANIFEST, check_written_by, read_shard, shard_files
from .files import disk_errors, read_json, replaced, write_json
from .generate import Generator, open_generator
from .prompts import ChatFrame, dataset_turns, encode_turn, file_turns, take
from .teacher import identify

#: Temperature at which the target writes user turns: high, for variety.
_ASKING = 0.9


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
        self._open = lambda: open_generator(backend, str(target.folder), batch, self._length(target.config), precision)
        self._generator: Generator | None = None

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
            if turns is not None:
                take(turns, self.settings.per_shard)
        empty = 0
        while total < tokens:
            prompts = self._prompts(turns, number + empty, seen)
            if not prompts:
                empty += 1
                if turns is not None:
                    return  # all prompts are used
                if empty == 3:
                    raise HeadError(
                        "the target wrote no usable user turn in three tries",
                        "Text that ends with its turn marker was expected behind the user header",
                        "Pass prompts: --prompts FILE",
                    )
                continue
            shard = self._shard(number, prompts, total)
            total, number, empty = shard.total_tokens, number + 1, 0
            yield shard

    @property
    def generator(self) -> Generator:
        if self._generator is None:
            self._generator = self._open()
        return self._generator

    def _shard(self, number: int, prompts: list[list[int]], total: int) -> Shard:
        settings, chance = self.settings, random.Random(self.settings.seed * 1_000_003 + number)
        temperatures = [0.0 if chance.random() < settings.greedy_share else settings.temperature for _ in prompts]
        answers = self.generator(
            prompts, temperatures, settings.answer_tokens, self.frame.stops, settings.seed + 2 * number + 1
        )
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

    def _prompts(self, turns: Iterator[str] | None, number: int, seen: set[tuple[int, ...]]) -> list[list[int]]:
        """The prompts of one shard, none of which was used before."""
        if turns is None:
            found = self._self_written(number)
        else:
            found = [encode_turn(self.tokenizer, self.frame, t) for t in take(turns, self.settings.per_shard)]
            longest = self._longest_prompt
            found = [p for p in found if len(p) <= longest] or found[:0]
        fresh = []
        for prompt in found:
            if tuple(prompt) not in seen:
                seen.add(tuple(prompt))
                fresh.append(prompt)
        return fresh

    def _self_written(self, number: int) -> list[list[int]]:
        settings, frame = self.settings, self.frame
        asked = self.generator(
            [frame.before] * settings.per_shard,
            [_ASKING] * settings.per_shard,
            settings.question_tokens,
            frame.stops,
            settings.seed + 2 * number,
        )
        # A turn that ended by itself and says something.
        turns = [tokens[:-1] for tokens in asked if tokens and tokens[-1] in frame.stops and len(tokens) > 4]
        return [frame.before + turn + frame.after for turn in turns]

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
        return min(wanted, getattr(config, "max_position_embeddings", None) or wanted)

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
