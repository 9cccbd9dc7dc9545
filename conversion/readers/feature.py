"""Feature-regression heads: an MLP that predicts the target's next hidden state.

`input_projection` over [hidden, embed], blocks of Linear, SiLU, LayerNorm in `regression.{0,3,6,...}`
with a residual around them, `output_projection` back to the hidden width. Saved as a bare state dict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...configs import AttentionFreeConfig
from ...errors import HeadError
from ...targets.target import Target
from ..embeddings import take_embedding
from ..intake import Intake
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..source import Source, read_table
from ..tokens import take_any_lm_head

_EMBEDDINGS = ("embed_tokens.weight", "embedding.weight", "embeddings.weight")


def recognise(source: Source) -> Evidence | None:
    if source.has("input_projection.weight", "output_projection.weight"):
        return Evidence(["tensors input_projection.* and output_projection.*"], strength=3, names_trainer=False)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    intake = Intake(source)
    hidden = target.hidden_size
    weight_in = intake.look("input_projection.weight", (hidden, None))
    embed_width = weight_in.shape[1] - hidden
    if embed_width <= 0:
        raise HeadError(
            f"input_projection.weight is {list(weight_in.shape)} for a target of hidden size {hidden}",
            "Its columns hold the hidden state and then the embedding",
            "Is this head for another target?",
        )
    pairing = token_pairing(source, options, "a feature-regression head")
    if options.fc_order == "embed-hidden":
        intake.take("input_projection.weight", "body.input_projection.weight")
    else:
        intake.take("input_projection.weight", "body.input_projection.weight", change=lambda t: _embed_first(t, hidden))
        intake.note("columns of input_projection permuted from [hidden, embed] to [embed, hidden]")
    intake.take("input_projection.bias", "body.input_projection.bias", (hidden,))
    intake.take("output_projection.weight", "body.output_projection.weight", (hidden, hidden))
    intake.take("output_projection.bias", "body.output_projection.bias", (hidden,))
    blocks = take_blocks(intake, "regression", hidden)
    own_embedding = _take_embedding(intake, options, target, embed_width)
    flags = take_any_lm_head(intake, options, target, hidden)
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
        own_embedding=own_embedding,
        **flags,
    )
    return Reading.of(config, intake)


def _embed_first(weight: Tensor, hidden: int) -> Tensor:
    return torch.cat((weight[:, hidden:], weight[:, :hidden]), 1)


def _take_embedding(intake: Intake, options: Options, target: Target, width: int) -> bool:
    if options.embedding is not None:
        table = read_table(options.embedding)
        if table.shape != (target.vocab_size, width):
            raise HeadError(
                f"{options.embedding.name} is {list(table.shape)}",
                f"[{target.vocab_size}, {width}] was expected",
                "Pass the table that the head was trained with",
            )
        intake.taken["embed_tokens.weight"] = table
        intake.note(f"embedding from {options.embedding.name}")
        intake.drop(_EMBEDDINGS, "replaced with --embedding")
        return True
    for name in _EMBEDDINGS:
        if take_embedding(intake, name, target, width):
            return True
    if width != target.hidden_size:
        raise HeadError(
            f"this head reads embeddings of width {width}, the target's are {target.hidden_size} wide",
            "A head with embeddings of its own needs their table",
            "Pass it with --embedding FILE",
        )
    return False


def take_blocks(intake: Intake, prefix: str, width: int) -> int:
    """Move blocks of Linear ({3i}) and LayerNorm ({3i + 2}) over; returns how many there are."""
    count = 0
    while f"{prefix}.{3 * count}.weight" in intake:
        for index, shape in ((3 * count, (width, width)), (3 * count + 2, (width,))):
            intake.take(f"{prefix}.{index}.weight", f"body.blocks.{index}.weight", shape)
            intake.take(f"{prefix}.{index}.bias", f"body.blocks.{index}.bias", (width,))
        count += 1
    return count


def token_pairing(source: Source, options: Options, what: str) -> str:
    """Told by the user or the config; never guessed, because both readings fit every shape."""
    pairing = options.token_pairing or source.config.get("token_pairing")
    if pairing not in ("next", "same"):
        raise HeadError(
            f"nothing in {source.path.name} says which token {what} was trained beside the hidden state of position t",
            "It must be known: `next` (token t+1, as EAGLE is trained) or `same` (token t)",
            "Pass --token-pairing next or --token-pairing same",
        )
    return pairing


READERS = (
    Reader(
        "feature",
        "feature-regression MLP (input_projection, regression, output_projection)",
        recognise,
        read,
        ("token_pairing", "embedding", "fc_order", "token_map"),
    ),
)
