"""Feature-regression heads: an MLP that predicts the target's next hidden state.

`input_projection` over [hidden, embed], blocks of Linear, SiLU, LayerNorm in `regression.{0,3,6,...}`
with a residual around them, `output_projection` back to the hidden width. Saved as a bare state dict.
"""

from __future__ import annotations

import torch

from ...configs import AttentionFreeConfig
from ...errors import HeadError
from ..options import Options
from ..reading import Reader, Reading, Tensors, own_lm_head, take_embedding
from ..source import Source, read_table
from ..target import Target

_EMBEDDINGS = ("embed_tokens.weight", "embedding.weight", "embeddings.weight")


def recognise(source: Source) -> list[str]:
    names = source.tensors
    if "input_projection.weight" in names and "output_projection.weight" in names:
        return ["tensors input_projection.* and output_projection.*"]
    return []


def read(source: Source, target: Target, options: Options) -> Reading:
    tensors, notes = Tensors(source.tensors), []
    hidden = target.hidden_size
    weight_in = tensors.take("input_projection.weight", (hidden, None))
    embed_width = weight_in.shape[1] - hidden
    if embed_width <= 0:
        raise HeadError(
            f"input_projection.weight is {list(weight_in.shape)} for a target of hidden size {hidden}",
            "Its columns hold the hidden state and then the embedding",
            "Is this head for another target?",
        )
    pairing = token_pairing(source, options, "a feature-regression head")
    taken = {
        # Stored order is [hidden, embed]; ours is [embed, hidden].
        "body.input_projection.weight": torch.cat((weight_in[:, hidden:], weight_in[:, :hidden]), 1),
        "body.input_projection.bias": tensors.take("input_projection.bias", (hidden,)),
        "body.output_projection.weight": tensors.take("output_projection.weight", (hidden, hidden)),
        "body.output_projection.bias": tensors.take("output_projection.bias", (hidden,)),
    }
    notes.append("columns of input_projection permuted from [hidden, embed] to [embed, hidden]")
    blocks = take_blocks(tensors, taken, "regression", hidden)

    embedding = None
    if options.embedding is not None:
        embedding = read_table(options.embedding)
        if tuple(embedding.shape) != (target.vocab_size, embed_width):
            raise HeadError(
                f"{options.embedding.name} is {list(embedding.shape)}",
                f"[{target.vocab_size}, {embed_width}] was expected",
            )
    for name in _EMBEDDINGS:
        if name in tensors:
            embedding = take_embedding(notes, tensors, name, target, embed_width)
    if embedding is None and embed_width != hidden:
        raise HeadError(
            f"this head reads embeddings of width {embed_width}, the target's are {hidden} wide",
            "A head with embeddings of its own needs their table",
            "Pass it with --embedding FILE",
        )
    if embedding is not None:
        taken["embed_tokens.weight"] = embedding
    head, flags = own_lm_head(notes, tensors, "lm_head.weight", target, hidden, "lm_head.bias")
    tensors.finish()
    config = AttentionFreeConfig(
        vocab_size=target.vocab_size,
        hidden_size=hidden,
        embedding_size=embed_width,
        input_projection=hidden,
        num_blocks=blocks,
        block_activation="silu",
        block_residual=True,
        output_projection=True,
        token_pairing=pairing,
        own_embedding=embedding is not None,
        **flags,
    )
    return Reading(config, taken | head, tensors.dropped, notes)


def take_blocks(tensors: Tensors, taken: dict[str, torch.Tensor], prefix: str, width: int) -> int:
    """Move blocks of Linear ({3i}) and LayerNorm ({3i + 2}) over; returns how many there are."""
    count = 0
    while f"{prefix}.{3 * count}.weight" in tensors:
        for index, shape in ((3 * count, (width, width)), (3 * count + 2, (width,))):
            taken[f"body.blocks.{index}.weight"] = tensors.take(f"{prefix}.{index}.weight", shape)
            taken[f"body.blocks.{index}.bias"] = tensors.take(f"{prefix}.{index}.bias", (width,))
        count += 1
    return count


def token_pairing(source: Source, options: Options, what: str) -> str:
    """Told by the user or the config; never guessed, because both readings fit every shape."""
    pairing = options.token_pairing or source.described("token_pairing")
    if pairing not in ("next", "same"):
        raise HeadError(
            f"nothing in {source.path.name} says which token {what} was trained beside the hidden state of position t",
            "It must be known: `next` (token t+1, as EAGLE is trained) or `same` (token t)",
            "Pass --token-pairing next or --token-pairing same",
        )
    return pairing


READER = Reader(
    "feature",
    "feature-regression MLP (input_projection, regression, output_projection)",
    recognise,
    read,
    ("token_pairing", "embedding"),
)
