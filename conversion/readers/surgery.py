"""Embedding-MLP ("surgery") heads: the target's embedding and lm_head with an MLP between them.

`embeddings.weight`, `mlp.{0,3,6,...}` of Linear, ReLU, LayerNorm, `lm_head.weight`, and a little config
with model_type `eagle`. Logits at token t are for t + 1, which is exactly how vLLM feeds a draft head.
"""

from __future__ import annotations

from ...configs import AttentionFreeConfig
from ...errors import HeadError
from ...targets.target import Target
from ..embeddings import take_embedding
from ..intake import Intake
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..source import Source
from ..tokens import take_any_lm_head
from .feature import take_blocks


def recognise(source: Source) -> Evidence | None:
    if source.has("embeddings.weight", "mlp.0.weight"):
        return Evidence(["tensors embeddings.weight and mlp.0.weight"], strength=3, names_trainer=False)
    if source.has("mlp.0.weight", "mlp.2.weight") and source.config.get("mlp_layers"):
        return Evidence(["tensors mlp.0 and mlp.2", "config.json says mlp_layers"], strength=3, names_trainer=False)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    intake = Intake(source)
    hidden = target.hidden_size
    described = source.config.get("hidden_size")
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
    blocks = take_blocks(intake, "mlp", hidden)
    if source.config.get("mlp_layers", blocks) != blocks:
        intake.note(f"config.json says {source.config.get('mlp_layers')} MLP layers; the tensors have {blocks}, used")
    own_embedding = take_embedding(intake, "embeddings.weight", target, hidden)
    flags = take_any_lm_head(intake, options, target, hidden)
    config = AttentionFreeConfig(
        vocab_size=target.vocab_size,
        hidden_size=hidden,
        use_hidden=False,
        num_blocks=blocks,
        block_activation="relu",
        own_embedding=own_embedding,
        **flags,
    )
    return Reading.of(config, intake)


READERS = (
    Reader(
        "surgery",
        "embedding MLP between the target's embedding and lm_head",
        recognise,
        read,
        ("token_pairing", "token_map"),
    ),
)
