"""The target a head is for: its shapes, its embedding and lm_head, its fingerprint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from ..checkpoint import safetensors_shapes
from ..errors import HeadError
from ..fingerprint import sample_embedding
from .hub import download
from .stored import Stored
from .tensor_files import read_tensors

#: Names of the input embedding across model families, most common first.
_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "model.decoder.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "model.language_model.embed_tokens.weight",
    "embed_tokens.weight",
)
_LM_HEADS = ("lm_head.weight", "embed_out.weight", "language_model.lm_head.weight")


@dataclass(frozen=True)
class Target:
    """A target on disk. V rows of width H in `embedding` and `lm_head`."""

    name: str
    folder: Path
    config: PretrainedConfig

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
    def embedding(self) -> Stored:
        return self._tensor(_EMBEDDINGS)

    @cached_property
    def lm_head(self) -> Stored:
        return self.embedding if self._find(_LM_HEADS) is None else self._tensor(_LM_HEADS)

    def fingerprint(self) -> dict[str, Any]:
        """What tells this target from others; see `vllm_eagle_plugin.fingerprint`."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "embedding": sample_embedding(self.embedding.load()),
        }

    @cached_property
    def _index(self) -> dict[str, Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            try:
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                raise HeadError(
                    f"{index} is damaged", "A JSON object with a weight_map was expected", "Copy or download it again"
                ) from None
            if any(not isinstance(name, str) or Path(name).name != name for name in files):
                raise HeadError(f"{index} names files outside its folder", "Plain file names were expected")
            paths = [self.folder / name for name in sorted(files)]
        else:
            paths = sorted(self.folder.glob("*.safetensors"))
        if not paths:
            raise HeadError(
                f"the target {self.folder} has no safetensors files",
                "Its embedding is needed to tell it from other models",
                "Save it with `save_pretrained` or download its safetensors",
            )
        found = {}
        for path in paths:
            found.update(dict.fromkeys(safetensors_shapes([path]), path))
        return found

    def _find(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self._index), None)

    def _tensor(self, names: tuple[str, ...]) -> Stored:
        name = self._find(names)
        if name is None:
            raise HeadError(
                f"the target {self.folder} has none of the tensors {', '.join(names)}",
                "Its embedding table was expected under one of these names",
                "Is it a language model, saved whole?",
            )
        return read_tensors(self._index[name])[name]


def read_target(name: str) -> Target:
    """A target from a local folder, or from the hub (its configuration and weights are downloaded)."""
    folder = Path(name)
    if not folder.is_dir():
        folder = download(name, ["*.json", "*.safetensors"])
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, StrictDataclassError) as error:
        raise HeadError(
            f"the target {name} has no usable config.json: {' '.join(str(error).split())}",
            "A Hugging Face model folder was expected",
            "Check --target",
        ) from None
    for key in ("hidden_size", "vocab_size", "num_hidden_layers"):
        if not isinstance(getattr(config, key, None), int):
            raise HeadError(f"the target's config.json has no {key}", "A language model was expected", "Check --target")
    return Target(name, folder, config)
