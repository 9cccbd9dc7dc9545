"""The target a head is for: its shapes, its embedding and lm_head, its fingerprint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import HeadError
from ..fingerprint import sample_embedding
from .hub import download
from .stored import Stored
from .tables import Tables, find_tables, read_table
from .text_config import TextConfig, read_text_config
from .weights import Checkpoint

#: What is downloaded of a target: never code, and a second copy of the weights only where there is no first.
_DESCRIPTION = ["*.json", "*.jinja", "tokenizer.model"]
_WEIGHTS = (["model*.safetensors"], ["*.safetensors"], ["*.bin"])


@dataclass(frozen=True)
class Target:
    """A target on disk. V rows of width H in `embedding` and `lm_head`."""

    name: str
    folder: Path
    config: TextConfig

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder)

    @cached_property
    def tables(self) -> Tables:
        """Where its tables are, in the checkpoint's names."""
        return find_tables(self.checkpoint, self.vocab_size, self.hidden_size, self.name)

    @property
    def tied(self) -> bool:
        """Whether the lm_head is the embedding, as servers decide it: by the config, and then by the tensors."""
        if self.tables.lm_head is None:
            return self.config.tied_anywhere is not False
        return bool(self.config.tied)

    @cached_property
    def embedding(self) -> Stored:
        table = read_table(self.checkpoint, self.tables.embedding, "embedding")
        if len(table.shape) != 2 or table.shape[1] != self.hidden_size:
            raise HeadError(
                f"the target's {self.tables.embedding} is {list(table.shape)}, its config.json says hidden_size "
                f"{self.hidden_size}",
                "Both must be of one model",
                "Copy or download the target again",
            )
        return table

    @cached_property
    def lm_head(self) -> Stored:
        if self.tied:
            return self.embedding
        if self.tables.lm_head is None:
            raise HeadError(
                f"the target {self.name} has no lm_head, and its config.json says that it is not tied to the embedding",
                "One of the two was expected",
                "Save it whole, with `save_pretrained`",
            )
        return read_table(self.checkpoint, self.tables.lm_head, "lm_head")

    def fingerprint(self) -> dict[str, Any]:
        """What tells this target from others; see `vllm_eagle_plugin.fingerprint`."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "embedding": sample_embedding(self.embedding.load()),
        }


def read_target(name: str) -> Target:
    """A target from a local folder, or from the hub (its configuration and weights are downloaded)."""
    folder = Path(name)
    if not folder.is_dir():
        folder = _downloaded(name)
    _refuse_adapter(folder, name)
    return Target(name, folder, read_text_config(folder, name))


def _downloaded(name: str) -> Path:
    folder = download(name, _DESCRIPTION)
    for patterns in _WEIGHTS:
        if any(True for pattern in patterns for _ in download(name, patterns).glob(pattern)):
            break
    return folder


def _refuse_adapter(folder: Path, name: str) -> None:
    """A LoRA adapter changes what its base model says: it is part of the target, or it is not. Never half."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        base = described.get("base_model_name_or_path") or "its base model"
    except (OSError, ValueError, AttributeError):
        base = "its base model"
    alone = not (folder / "config.json").is_file()
    raise HeadError(
        f"the target {name} is a LoRA adapter of {base}" if alone else f"beside the target {name} lies a LoRA adapter",
        "One model was expected: with the adapter merged into its weights, or without it",
        f"Merge it with peft: AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained(FOLDER) "
        f"and pass FOLDER, or pass {base}" if alone else
        f"Merge it into the weights, or move {file.name} and the adapter's weights out of the folder",
    )  # fmt: skip
