"""The frozen target: what it hands a head over, and what it would say."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import HeadError
from ..targets.running import decoder_of, load_model
from ..targets.target import Target

#: Bytes of each of the pieces of a weight file that make up its digest.
_PIECE, _PIECES = 1 << 16, 32


class States(NamedTuple):
    """Of tokens [B, T]: what the head reads [B, T, *], and the last hidden states [B, T, H]."""

    hidden: Tensor
    last: Tensor


class Teacher:
    """A target in evaluation mode on one device.

    `layers` are the aux layers a head fuses (vLLM's count: the residual stream behind i layers); None
    for heads that read the last hidden state, behind the final norm.
    """

    def __init__(self, target: Target, layers: list[int] | None, dtype: torch.dtype, device: torch.device) -> None:
        if layers is not None and not all(0 <= layer < target.num_layers for layer in layers):
            raise HeadError(
                f"the head is to fuse layers {layers} of a target that has {target.num_layers}",
                f"Layers 0 to {target.num_layers - 1} can be read",
                "Set head.layer_ids in the recipe",
            )
        model = load_model(target, dtype)
        self.model = model.to(device)
        self.layers = layers
        output = model.get_output_embeddings()
        # Plain tensors: a module that is lent a parameter would take it for its own.
        self.embedding: Tensor = model.get_input_embeddings().weight.detach()
        self.lm_head: Tensor = output.weight.detach()
        bias = getattr(output, "bias", None)
        self.lm_head_bias: Tensor | None = None if bias is None else bias.detach()
        self.softcap, self.scale = target.config.logit_softcap, target.config.logit_scale

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> States:
        """States at ids [B, T], padded on the right (what stands behind a token does not change it)."""
        states = decoder_of(self.model)(ids, output_hidden_states=True, use_cache=False).hidden_states
        return States(
            states[-1] if self.layers is None else torch.cat([states[i] for i in self.layers], -1), states[-1]
        )

    @torch.no_grad()
    def logits(self, last: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Last hidden states [.., H] to logits [.., V], fp32; only of `tokens` [S] where they are given."""
        matrix, bias = self.lm_head, self.lm_head_bias
        if tokens is not None:
            matrix, bias = matrix[tokens], None if bias is None else bias[tokens]
        logits = nn.functional.linear(last, matrix, bias).float() * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def identify(target: Target) -> dict[str, Any]:
    """What tells a target from any other: its shapes, and a digest of its files.

    The digest reads pieces spread over each weight file, so that it is quick for any size; a model
    trained further differs in them all.
    """
    return {
        "name": Path(target.name).name,
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "num_hidden_layers": target.num_layers,
        "digest": _digest(list(target.checkpoint.files)),
    }


def same_target(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two identities are of the same weights, wherever they lie."""
    return {**one, "name": ""} == {**other, "name": ""}


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as opened:
            for piece in range(_PIECES):
                opened.seek(max(0, size - _PIECE) * piece // (_PIECES - 1))
                digest.update(opened.read(_PIECE))
    return digest.hexdigest()
