"""What a reader makes of a head: our config, our tensors, and an account of every source tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..configs import HeadConfig
from ..errors import HeadError
from ..preflight import compare_tensors
from ..reference import ReferenceHead, build_reference, expected_tensors
from ..targets.stored import Stored
from ..targets.target import Target
from .intake import Intake
from .options import Options
from .quantised import Quantised, quantisation_of
from .source import Source

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Reading:
    """A head as understood, in canonical names and the column order [embed, hidden]."""

    config: HeadConfig
    tensors: dict[str, Stored]
    #: Source tensors by the names in their files, and what became of them in ours.
    used: dict[str, str] = field(default_factory=dict)
    #: Source tensors that were left out, and why.
    dropped: dict[str, str] = field(default_factory=dict)
    #: What was found and changed, for the user and for the provenance.
    notes: list[str] = field(default_factory=list)
    #: Keys of the source's config by their path, and what became of them.
    keys: dict[str, str] = field(default_factory=dict)
    #: How its weights are quantised, as vLLM reads it; empty where they are not.
    quantisation: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(config: HeadConfig, intake: Intake) -> Reading:
        """The result of an intake that took everything."""
        intake.finish()
        quantised = any(isinstance(tensor, Quantised) for tensor in intake.taken.values())
        said = quantisation_of(intake.source) if quantised else {}
        return Reading(config, intake.taken, intake.used, intake.dropped, intake.notes, quantisation=said)

    def check(self) -> None:
        """Raise `HeadError` unless config and tensors agree exactly; values are checked while they are written."""
        self.config.validate_head()
        compare_tensors(expected_tensors(self.config), {n: t.shape for n, t in self.tensors.items()})
        for name, tensor in self.tensors.items():
            if name != "d2t" and tensor.dtype not in WEIGHT_DTYPES:
                raise HeadError(
                    f"tensor {name} is {tensor.kind}",
                    "Weights must be plain floating-point numbers",
                    "If the head is quantised, export it before quantisation",
                )

    def reference(self, target: Target) -> ReferenceHead:
        """The head as its reader understands it, in fp32, with the target's tables lent to it."""
        head = build_reference(self.config)
        weights = {n: t.load() if n == "d2t" else t.load().float() for n, t in self.tensors.items()}
        head.load_state_dict(weights)
        head.attach_target(target.embedding.load().float(), target.lm_head.load().float())
        return head.eval()


@dataclass(frozen=True)
class Evidence:
    """Why a source looks like a producer's. `strength`: 4 we wrote it, 3 its own marks, 2 its layout, 1 a layout it shares."""

    points: list[str]
    strength: int = 2
    #: Whether marks like these also say whose training code it was; only marks of strength 3 can.
    names_trainer: bool = True


@dataclass(frozen=True)
class Reader:
    """Understands one producer's files."""

    name: str
    #: What the producer's heads look like, in one line.
    summary: str
    #: Evidence that a source is this producer's; None if it is not.
    recognise: Callable[[Source], Evidence | None]
    read: Callable[[Source, Target, Options], Reading]
    #: The `Options` that it reads beyond those every reader does; others are refused rather than ignored.
    options: tuple[str, ...] = ()


def flags_of(config: HeadConfig) -> dict[str, Any]:
    """Everything a config says of its head, for comparing two readings."""
    return {k: v for k, v in config.to_dict().items() if k != "transformers_version"}
