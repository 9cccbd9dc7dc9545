"""Telling one target from another of the same shapes, by a few numbers of its embedding table.

A head trained for another model loads without complaint when the shapes agree, and is then never
accepted. Numbers rather than a hash, so that the check survives casts (bf16, fp16, fp32) and tensor
parallel shards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import HeadError

ROWS, COLUMNS = 16, 8
#: bf16 keeps 8 bits, so a cast moves a value by up to 0.4 percent.
TOLERANCE = 0.02


def sample_embedding(embedding: Tensor) -> dict[str, Any]:
    """A few rows of an embedding table [V, H], spread over the vocabulary, as plain numbers."""
    ids = torch.linspace(0, embedding.shape[0] - 1, ROWS).long()
    values = embedding[ids, :COLUMNS].float()
    return {"ids": ids.tolist(), "values": [[float(f"{v:.6g}") for v in row] for row in values.tolist()]}


def check_embedding(fingerprint: dict[str, Any], embedding: Tensor, first_id: int, target: str) -> None:
    """Raise `HeadError` unless `embedding` holds the rows of the target that the head was made for.

    `embedding` [rows, H] is the part of the table that starts at token `first_id`.
    """
    sample = fingerprint.get("embedding")
    if not sample or embedding.dim() != 2 or not embedding.is_floating_point():
        return  # a quantised table has no plain rows to compare
    for token, row in zip(sample["ids"], sample["values"], strict=True):
        if not first_id <= token < first_id + embedding.shape[0]:
            continue
        expected = torch.tensor(row)
        found = embedding[token - first_id, : len(row)].detach().float().cpu()
        if (found - expected).abs().max() > TOLERANCE * expected.abs().max().clamp_min(1e-3):
            raise HeadError(
                f"this draft head was made for the target {fingerprint.get('name', '(unnamed)')!r}; "
                f"{target!r} has the same shapes but other weights (embedding of token {token} differs)",
                "A head drafts only for the model it was trained with",
                "Serve that target, or convert a head trained for this one",
            )
