"""Embedding-MLP ("surgery") heads: the target's embedding and lm_head with an MLP between them.

`embeddings.weight`, `mlp.{0,3,6,...}` of Linear, ReLU, LayerNorm, `lm_head.weight`, and a little config
with model_type `eagle`. Logits at token t are for t + 1, which is exactly how vLLM feeds a draft head.
"""

from __future__ import annotations

from ...configs import AttentionFreeConfig
from ...errors import HeadError
from ..options import Options
from ..reading import Reader, Reading, Tensors, own_lm_head, take_embedding
from ..source import Source
from ..target import Target
from .feature import take_blocks


def recognise(source: Source) -> list[str]:
    if "embeddings.weight" in source.tensors and "mlp.0.weight" in source.tensors:
        return ["tensors embeddings.weight and mlp.0.weight"]
    return []


def read(source: Source, target: Target, options: Options) -> Reading:
    tensors, notes = Tensors(source.tensors), []
    hidden = target.hidden_size
    described = source.described("hidden_size")
    if described not in (None, hidden):
        raise HeadError(
            f"config.json says hidden_size {described}, the target has {hidden}",
            "The MLP stands between the target's embedding and its lm_head",
            "Is this head for another target?",
        )
    if options.token_pairing == "same":
        raise HeadError(
            "--token-pairing same was given for an embedding MLP",
            "It reads the token t and drafts t + 1",
            "Leave the option out",
        )
    taken: dict = {}
    blocks = take_blocks(tensors, taken, "mlp", hidden)
    if source.described("mlp_layers", blocks) != blocks:
        notes.append(f"config.json says {source.described('mlp_layers')} MLP layers; the tensors have {blocks}, used")
    embedding = take_embedding(notes, tensors, "embeddings.weight", target, hidden)
    if embedding is not None:
        taken["embed_tokens.weight"] = embedding
    head, flags = own_lm_head(notes, tensors, "lm_head.weight", target, hidden, "lm_head.bias")
    tensors.finish()
    config = AttentionFreeConfig(
        vocab_size=target.vocab_size,
        hidden_size=hidden,
        use_hidden=False,
        num_blocks=blocks,
        block_activation="relu",
        own_embedding=embedding is not None,
        **flags,
    )
    return Reading(config, taken | head, tensors.dropped, notes)


READER = Reader(
    "surgery", "embedding MLP between the target's embedding and lm_head", recognise, read, ("token_pairing",)
)
