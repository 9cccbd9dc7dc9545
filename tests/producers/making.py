"""Writing a fixture and converting it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from vllm_eagle_plugin.conversion import Conversion, convert
from vllm_eagle_plugin.conversion.options import Options

from vllm_eagle_plugin.reference import ReferenceHead

from ..cases import CASES, LAYOUTS
from ..known_answer import Target, known_answer_head
from ..random_models import fill
from . import FIXTURES


@dataclass(frozen=True)
class Made:
    target: Target
    head: ReferenceHead
    #: The producer's own module, where a writer has one.
    theirs: nn.Module | None
    #: The folder as its producer left it.
    trained: Path
    done: Conversion

    @property
    def config(self) -> dict[str, Any]:
        """The written config without its provenance."""
        written = json.loads((self.done.output / "config.json").read_text())
        return {key: value for key, value in written.items() if key != "eagle_provenance"}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.done.output / "model.safetensors")


def make(name: str, target_for: Callable[..., Target], folder: Path, **options: Any) -> Made:
    """The fixture `name`, written to `folder`/trained and converted to `folder`/out."""
    fixture = FIXTURES[name]
    config = {**CASES, **LAYOUTS}[fixture.case]()
    target = target_for(config, layers=fixture.layers)
    head = known_answer_head(config, target) if fixture.exact else fill(config, target.embedding, target.lm_head)
    trained = folder / "trained"
    trained.mkdir(parents=True)
    theirs = fixture.write(head, trained)
    named = trained / fixture.config if fixture.config else None
    told = Options(**{**fixture.options, **options})
    return Made(target, head, theirs, trained, convert(trained, str(target.folder), folder / "out", told, config=named))
