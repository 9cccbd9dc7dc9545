"""What a look at a head's files shows before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import HeadError
from ...targets.stored import Stored
from ...targets.target import Target
from ..reading import Reading
from ..values import check_values, mean_cosine
from . import known


@dataclass(frozen=True)
class Finding:
    """One observation; `fatal` if no head with it can work, `suspect` if it explains one that does not."""

    kind: str
    text: str
    threads: str = ""


def look(reading: Reading, target: Target) -> list[Finding]:
    """Everything worth saying about a head that has been read."""
    found = [Finding("note", note) for note in reading.notes]
    for name, tensor in reading.tensors.items():
        found += _values(name, tensor)
    found += _tables(reading, target)
    kinds = sorted({t.kind for n, t in reading.tensors.items() if n != "d2t"})
    found.append(Finding("note", f"weights are stored as {', '.join(kinds)}"))
    return found


def _values(name: str, tensor: Stored) -> list[Finding]:
    try:
        check_values(name, tensor)
    except HeadError as error:
        return [Finding("fatal", error.found, known.RANDOM)]
    if name == "d2t":
        return []
    if len(tensor.shape) == 1 and "norm" in name and name.endswith("weight"):
        values = tensor.load()
        if bool((values == 1).all()):
            return [Finding("suspect", f"{name} is all ones, as before training", known.RANDOM)]
    if len(tensor.shape) == 2 and (kind := _fresh(tensor.load())):
        return [Finding("suspect", f"{name} is distributed as a fresh {kind} initialisation is", known.RANDOM)]
    return []


def _fresh(matrix: Tensor) -> str | None:
    """The initialisation that a matrix looks to be straight from; None for any other.

    A uniform one of torch's linear layers ends sharply at 1 / sqrt(columns); a normal one of 0.02 has that
    deviation in every row. Training moves both.
    """
    sample = matrix[torch.linspace(0, matrix.shape[0] - 1, min(256, matrix.shape[0])).long()].float()
    bound, deviation = matrix.shape[1] ** -0.5, float(sample.std())
    if sample.numel() < 4096:
        return None
    if abs(float(sample.abs().max()) / bound - 1) < 0.01 and abs(deviation / (bound / 3**0.5) - 1) < 0.01:
        return "uniform"
    kurtosis = float(((sample - sample.mean()) / deviation).pow(4).mean())
    rows = sample.std(1)
    expected = (2 * sample.shape[1]) ** -0.5  # relative spread of rows' deviations by chance alone
    if abs(deviation - 0.02) < 2e-4 and abs(kurtosis - 3) < 0.1 and float(rows.std() / rows.mean()) < 1.3 * expected:
        return "normal"
    return None


def _tables(reading: Reading, target: Target) -> list[Finding]:
    found = []
    own = reading.tensors.get("embed_tokens.weight")
    if own is not None and own.shape == target.embedding.shape:
        cosine = mean_cosine(own, target.embedding)
        kind = "suspect" if abs(cosine) < 0.5 else "note"
        found.append(Finding(kind, f"its embedding has mean cosine {cosine:.2f} with the target's", known.TABLES))
    own = reading.tensors.get("lm_head.weight")
    if own is not None and own.shape[1:] == target.lm_head.shape[1:]:
        ids = torch.arange(own.shape[0])
        if "d2t" in reading.tensors:
            ids = ids + reading.tensors["d2t"].load()
        cosine = mean_cosine(own, target.lm_head, ids)
        kind = "suspect" if abs(cosine) < 0.05 else "note"
        text = f"rows of its lm_head have mean cosine {cosine:.2f} with the target's for the same tokens"
        found.append(Finding(kind, text, known.LM_HEAD))
    return found
