"""Going on from a trained head: read in any layout, trained in the modules that define it, written so that it survives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .. import __version__
from ..configs import AttentionFreeConfig, Eagle3Config, EagleConfig, HeadConfig
from ..errors import HeadError
from ..reference import ReferenceHead, build_reference
from ..targets.target import Target
from .conditioning import unconditioned
from .export import export_head
from .files import replaced, write_json
from .recipe import Recipe


@dataclass(frozen=True)
class Start:
    """A trained head, by the name it was given, as the module that is trained."""

    name: str
    head: ReferenceHead
    #: Of its config and weights.
    digest: str

    @property
    def family(self) -> str:
        """The recipe family that its config belongs to."""
        return family_of(self.head.config)


def read_start(head: str, target: Target, options: Any = None) -> Start:
    """The head at a path or hub id, in any layout that `convert` reads; `options` are `convert`'s.

    Raises:
        HeadError: `convert` refuses it, or it drafts in a way that the chain's training does not cover.
    """
    from ..conversion.options import Options
    from ..conversion.understand import open_source, understand

    _, reading = understand(open_source(head), target, options or Options())
    if isinstance(reading.config, Eagle3Config) and reading.config.parallel_drafting:
        raise HeadError(
            f"{head} drafts all its tokens in one pass (P-EAGLE)",
            "Heads that draft one token after another can be trained further here",
            "Go on with the trainer it comes from",
        )
    module = build_reference(reading.config)
    weights = {n: t.load() if n == "d2t" else t.load().float() for n, t in reading.tensors.items()}
    module.load_state_dict(weights)
    digest = hashlib.sha256(json.dumps(reading.config.to_dict(), sort_keys=True, default=str).encode())
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return Start(str(head), module, digest.hexdigest())


def family_of(config: HeadConfig) -> str:
    """The recipe family of a config."""
    if isinstance(config, Eagle3Config):
        return "eagle3"
    if isinstance(config, EagleConfig):
        return "eagle1"
    assert isinstance(config, AttentionFreeConfig)
    if config.own_lm_head:
        return "projection"
    return "feature" if config.use_hidden else "surgery"


def fitted(recipe: Recipe, config: HeadConfig) -> Recipe:
    """`recipe` for a head of this config: one step where it cannot chain, no terms that its lm_head rules out."""
    unroll, loss = recipe.unroll, recipe.loss
    if config.max_draft_tokens is not None:
        unroll = dataclasses.replace(unroll, steps=min(unroll.steps, config.max_draft_tokens))
    if config.own_lm_head:
        loss = dataclasses.replace(loss, smooth_l1=0.0, mse=0.0, vocabulary=0)
    return dataclasses.replace(recipe, unroll=unroll, loss=loss)


def export_adapted(family: str, head: ReferenceHead, target: Target, folder: Path, tables: bool = False) -> None:
    """Write `head` as `train head` does where that layout says all of it, else in this package's own.

    Whether it does is seen by reading it back: config and tensors must be the ones that were written.
    """
    with tempfile.TemporaryDirectory() as trial:
        export_head(family, head, Path(trial), tables)
        survives = _same(read_back(Path(trial), target), head)
    if survives:
        export_head(family, head, folder, tables)
        return
    weights = unconditioned(head, {n: t.detach().cpu() for n, t in head.state_dict().items()})
    halved = {n: (t.to(torch.bfloat16) if t.is_floating_point() else t).contiguous() for n, t in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / "model.safetensors") as partial:
        save_file(halved, partial, {"format": "pt"})
    provenance = {
        "converter": f"vllm-eagle-plugin {__version__}",
        "producer": "vllm-eagle train",
        "method": head.config.method,
        "target": target.fingerprint(),
    }
    write_json(folder / "config.json", {**flags(head.config), "eagle_provenance": provenance})


def read_back(folder: Path, target: Target) -> ReferenceHead | None:
    """The head in `folder` as `convert` reads it; None where it refuses."""
    try:
        return read_start(str(folder), target).head
    except HeadError:
        return None


def flags(config: HeadConfig) -> dict[str, Any]:
    """All that a config says of its head."""
    return {k: v for k, v in config.to_dict().items() if k != "transformers_version"}


def _same(found: ReferenceHead | None, head: ReferenceHead) -> bool:
    if found is None or flags(found.config) != flags(head.config):
        return False
    written, read = unconditioned(head, head.state_dict()), found.state_dict()
    return written.keys() == read.keys() and all(
        torch.equal(read[n].cpu().float(), t.detach().cpu().to(torch.bfloat16).float())
        or torch.equal(read[n].cpu().float(), t.detach().cpu().to(torch.float16).float())
        or torch.equal(read[n].cpu(), t.detach().cpu())
        for n, t in written.items()
    )
