"""What a reader makes of a head: our config, our tensors, and an account of every source tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..configs import HeadConfig
from ..errors import HeadError
from ..preflight import compare_tensors
from ..reference import expected_tensors
from .options import Options
from .source import Source
from .target import Target

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Reading:
    """A head as understood, in canonical names and the column order [embed, hidden]."""

    config: HeadConfig
    tensors: dict[str, Tensor]
    #: Source tensors that were left out, and why.
    dropped: dict[str, str] = field(default_factory=dict)
    #: What was found and changed, for the user and for the provenance.
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise `HeadError` unless config and tensors agree exactly and every weight is a finite number."""
        self.config.validate_head()
        compare_tensors(expected_tensors(self.config), {n: tuple(t.shape) for n, t in self.tensors.items()})
        for name, tensor in self.tensors.items():
            if name != "d2t" and tensor.dtype not in WEIGHT_DTYPES:
                raise HeadError(
                    f"tensor {name} is {str(tensor.dtype).removeprefix('torch.')}",
                    "Weights must be plain floating-point numbers",
                    "If the head is quantised, export it before quantisation",
                )
            if not tensor.isfinite().all():
                raise HeadError(
                    f"tensor {name} holds NaN or infinite values",
                    "Trained weights are finite",
                    "Export the head again from an earlier checkpoint",
                )
            if tensor.dim() == 2 and tensor.numel() > 1 and not tensor.any():
                raise HeadError(
                    f"tensor {name} is all zeros",
                    "A trained matrix is not",
                    "Was the head exported before its weights were gathered?",
                )


@dataclass(frozen=True)
class Reader:
    """Understands one producer's files."""

    name: str
    #: What the producer's heads look like, in one line.
    summary: str
    #: Evidence that a source is this producer's, empty if it is not.
    recognise: Callable[[Source], list[str]]
    read: Callable[[Source, Target, Options], Reading]
    #: The `Options` beyond dtype and producer that it reads; others are refused rather than ignored.
    options: tuple[str, ...] = ()


class Tensors:
    """Source tensors, each to be taken once; what is left over is the cause of a refusal."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)
        self.dropped: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, shape: tuple[int | None, ...] | None = None) -> Tensor:
        """The tensor `name`; `shape` may leave sizes open with None."""
        if name not in self._left:
            raise HeadError(
                f"tensor {name} is missing; the head has {_listed(self._left)}",
                "It is part of every head of this kind",
                "Export the head again, whole",
            )
        tensor = self._left.pop(name)
        if not tensor.numel():
            raise HeadError(
                f"tensor {name} is empty ({list(tensor.shape)})",
                "Trained weights were expected",
                "Gather sharded weights before the export (DeepSpeed ZeRO-3: zero_to_fp32.py)",
            )
        if shape is not None and (
            tensor.dim() != len(shape)
            or any(want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise HeadError(
                f"{name} is {list(tensor.shape)}", f"[{wanted}] was expected", "Is this head for another target?"
            )
        return tensor

    def take_if(self, name: str, shape: tuple[int | None, ...] | None = None) -> Tensor | None:
        return self.take(name, shape) if name in self else None

    def drop(self, name: str, why: str) -> None:
        if self._left.pop(name, None) is not None:
            self.dropped[name] = why

    def names(self) -> list[str]:
        return list(self._left)

    def finish(self) -> None:
        if self._left:
            raise HeadError(
                f"the head has tensors that nothing here accounts for: {_listed(self._left)}",
                "Every tensor of a head changes what it computes",
                "If it is of another producer, name it with --producer",
            )


def same_weights(own: Tensor, target: Tensor) -> bool:
    """Whether two tables are the same up to the precision they are stored in."""
    if own.shape != target.shape:
        return False
    return torch.equal(own, target.to(own.dtype)) or torch.equal(own.to(target.dtype), target)


def take_embedding(reading_notes: list[str], tensors: Tensors, name: str, target: Target, width: int) -> Tensor | None:
    """The head's own embedding [V, width], or None where it has none or only a copy of the target's.

    A table shorter than the vocabulary (made for `len(tokenizer)` tokens) is filled up with the target's
    rows where it is a copy of them and with zeros else: no text has the tokens in question.
    """
    table = tensors.take_if(name, (None, width))
    if table is None:
        return None
    rows, vocab = table.shape[0], target.vocab_size
    known = target.embedding
    if known.shape[1] == width and same_weights(table[:vocab], known[: min(rows, vocab)]):
        tensors.dropped[name] = "equal to the target's embedding, which is used instead"
        return None
    if known.shape[1] == width:
        check_related(name, table, known)
    if rows > vocab:
        reading_notes.append(f"{name} has {rows} rows, cut to the target's {vocab}")
        return table[:vocab]
    if rows < vocab:
        reading_notes.append(f"{name} has {rows} rows, filled with zeros to the target's {vocab}")
        return torch.cat((table, table.new_zeros(vocab - rows, width)))
    return table


def check_related(name: str, own: Tensor, target: Tensor) -> None:
    """Refuse an embedding that has nothing to do with the target's: exporters have shipped random ones."""
    rows = torch.linspace(0, min(len(own), len(target)) - 1, 512).long().unique()
    cosine = float(torch.cosine_similarity(own[rows].float(), target[rows].float(), -1).mean())
    if abs(cosine) < 0.05:
        raise HeadError(
            f"{name} has nothing in common with the target's embedding (mean cosine {cosine:.3f})",
            "Heads are trained on the target's embedding, so it was probably never initialised, or is another model's",
            "Remove the tensor to use the target's embedding, or convert for the right target",
        )


def own_lm_head(
    notes: list[str], tensors: Tensors, name: str, target: Target, width: int, bias_name: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and flags of the head's lm_head; both empty where it is a copy of the target's.

    An lm_head of fewer rows than the vocabulary drafts its first tokens.
    """
    weight = tensors.take_if(name, (None, width))
    bias = tensors.take_if(bias_name) if bias_name else None
    if weight is None:
        return {}, {}
    rows = min(weight.shape[0], target.vocab_size)
    if bias is None and target.lm_head.shape[1] == width and same_weights(weight[:rows], target.lm_head[:rows]):
        tensors.dropped[name] = "equal to the target's lm_head, which is used instead"
        return {}, {}
    taken = {"lm_head.weight": weight[:rows]}
    flags: dict[str, Any] = {"own_lm_head": True}
    if bias is not None:
        taken["lm_head.bias"], flags["lm_head_bias"] = bias[:rows], True
    if rows < target.vocab_size:
        notes.append(f"{name} has {rows} rows: the head drafts the first {rows} of {target.vocab_size} tokens")
        taken["d2t"], flags["draft_vocab_size"] = torch.zeros(rows, dtype=torch.long), rows
    return taken, flags


def _listed(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {list(t.shape)}" for name, t in list(tensors.items())[:8]]
    return ", ".join(shown) + (f" and {len(tensors) - 8} more" if len(tensors) > 8 else "")
