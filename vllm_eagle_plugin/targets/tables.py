"""Where a checkpoint keeps its embedding, its lm_head and its final norm, whatever they are called there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HeadError
from .stored import Stored

#: Last parts of names, commonest first.
_EMBEDDING = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "embedding", "embed", "word_embedding", "token_embedding", "shared")  # fmt: skip
_LM_HEAD = ("lm_head", "embed_out", "output", "output_layer", "head", "proj_out", "unembed")
_NORM = (
    "norm",
    "ln_f",
    "final_layernorm",
    "final_layer_norm",
    "norm_f",
    "final_norm",
    "layer_norm",
    "model_norm",
    "embedding_norm",
)
#: Parts of a model that are not the language model that speaks, or not its own embedding.
_ELSEWHERE = re.compile(
    r"(^|[._])(vision|visual|vit|image|video|audio|speech|talker|code2wav|token2wav|mtp|nextn|draft|encoder|sam|"
    r"projector|connector|resampler|perceiver|qformer|adapter|position|per_layer)([._]|\d|$)"
)
_LAYER = re.compile(r"\.\d+\.")
#: What a quantised matrix has beside, or instead of, `weight`.
_PACKED = ("qweight", "weight_packed", "weight_blocks", "blocks")
_SCALES = ("weight_scale_inv", "weight_scale", "scale")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_QUANTISED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


@dataclass(frozen=True)
class Tables:
    """Names of modules: their tensors are `NAME.weight` and perhaps `NAME.bias`."""

    embedding: str
    lm_head: str | None
    norm: str | None


def find_tables(checkpoint: Mapping[str, Stored], vocab: int, width: int, name: str) -> Tables:
    """Where the tables of a language model of `vocab` tokens and `width` H are.

    Raises:
        HeadError: no embedding was found.
    """
    modules = _modules(checkpoint)
    embedding = _best(modules, _EMBEDDING)
    lm_head = _best(modules, _LM_HEAD)
    if embedding is None:  # an unknown name: the one matrix of these sizes outside the layers
        unknown = [m for m in modules if m != lm_head and _table(checkpoint, m, vocab, width)]
        embedding = unknown[0] if len(unknown) == 1 else None
    if embedding is None:
        shown = ", ".join(sorted(checkpoint)[:6])
        raise HeadError(
            f"the embedding of the target {name} was not found among its tensors: {shown}",
            f"A matrix of {vocab} rows and {width} columns was expected, called {', '.join(_EMBEDDING[:5])} or the like",
            "Is it a language model, saved whole?",
        )
    return Tables(embedding, lm_head, _best(modules, _NORM))


def read_table(checkpoint: Mapping[str, Stored], module: str, what: str) -> Stored:
    """The matrix of a module, dequantised where that takes a scale alone.

    Raises:
        HeadError: it is packed in a way that is not read here.
    """
    weight = checkpoint.get(f"{module}.weight")
    scale = next((s for name in _SCALES if (s := checkpoint.get(f"{module}.{name}")) is not None), None)
    if weight is not None and weight.dtype in _FLOATS:
        return weight
    if (
        weight is not None
        and scale is not None
        and weight.dtype in _QUANTISED
        and f"{module}.weight_zero_point" not in checkpoint
    ):
        return Stored(weight.shape, torch.bfloat16, lambda: dequantised(weight.load(), scale.load()))
    kind = weight.kind if weight is not None else next(p for p in _PACKED if f"{module}.{p}" in checkpoint)
    raise HeadError(
        f"the target's {what} is quantised: {module} is stored as {kind}",
        "Heads share it, so that it must be readable as numbers: plain, or FP8 or INT8 with scales",
        "Pass the target in a form that leaves embedding and lm_head as they are, as most quantisers do, or the original",
    )


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    """`weight` [R, C] times its scale: one for all, one a row ([R], [R, 1]), or one a block ([r, c]); bfloat16."""
    scale = scale.float()
    if scale.numel() == 1:
        return (weight.float() * scale.reshape(())).bfloat16()
    if scale.dim() == 1:
        scale = scale[:, None]
    rows, columns = (-(-have // blocks) for have, blocks in zip(weight.shape, scale.shape, strict=True))
    whole = scale.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)[:, : weight.shape[1]]
    return (weight.float() * whole).bfloat16()


def _modules(names: Iterable[str]) -> list[str]:
    """Modules of the language model outside its layers that have a weight, stored plainly or packed."""
    endings = ("weight", *_PACKED)
    modules = dict.fromkeys(n.rpartition(".")[0] for n in names if n.rpartition(".")[2] in endings)
    return [m for m in modules if not _LAYER.search(f".{m}.") and not _ELSEWHERE.search(m.rpartition(".")[0])]


def _best(modules: Iterable[str], leaves: tuple[str, ...]) -> str | None:
    """The module called by one of `leaves`: the commonest name, the least inside something else."""
    ranked = [(leaves.index(leaf), m.count("."), m) for m in modules if (leaf := m.rpartition(".")[2]) in leaves]
    return min(ranked)[2] if ranked else None


def _table(checkpoint: Mapping[str, Stored], module: str, vocab: int, width: int) -> bool:
    weight = checkpoint.get(f"{module}.weight")
    return weight is not None and len(weight.shape) == 2 and weight.shape[0] >= vocab and weight.shape[1] == width
