"""An untrained head for a target, as a recipe describes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..configs import AttentionFreeConfig, Eagle3Config, EagleConfig, HeadConfig, TransformerHeadConfig
from ..errors import UsageError
from ..reference import ReferenceHead, build_reference
from ..targets.target import Target
from .medusa import MedusaConfig, MedusaHead
from .recipe import Recipe
from .vocabulary import most_frequent

#: RoPE base of SafeAILab's own training code, which their layouts imply where they say nothing.
ROPE_THETA = 10000.0


def head_config(recipe: Recipe, target: Target) -> HeadConfig:
    """The config of the recipe's head for `target`."""
    config = _FAMILIES[recipe.family](recipe, target)
    config.validate_head()
    if config.max_draft_tokens is not None and recipe.unroll.steps > config.max_draft_tokens:
        raise UsageError(
            f"unroll.steps is {recipe.unroll.steps} for a head that drafts {config.max_draft_tokens} token",
            "Its output is not as wide as the target's hidden state, so it cannot be fed back",
            "Pass --set unroll.steps=1, or head.width = 0",
        )
    return config


def aux_layers(config: HeadConfig) -> list[int] | None:
    """The target's layers that the head fuses; None if it reads the last hidden state."""
    return config.eagle_aux_hidden_state_layer_ids if isinstance(config, Eagle3Config) else None


def new_head(config: HeadConfig, lm_head: Tensor, counts: Tensor, seed: int) -> ReferenceHead:
    """A head with fresh weights; `counts` [V] are the token frequencies that choose a draft vocabulary.

    An own lm_head starts as the rows of the target's, `lm_head` [V, H], where the widths agree.
    """
    torch.manual_seed(seed)
    head = MedusaHead(config) if isinstance(config, MedusaConfig) else build_reference(config)
    if not config.own_lm_head:
        return head
    rows = torch.arange(config.draft_vocab)
    if config.reduced_vocab and isinstance(config, Eagle3Config):
        rows = most_frequent(counts, config.draft_vocab)
    with torch.no_grad():
        if head.d2t is not None:
            head.d2t.copy_(rows - torch.arange(len(rows)))
        if head.lm_head.weight.shape[1] == lm_head.shape[1]:
            head.lm_head.weight.copy_(lm_head[rows.to(lm_head.device)])
    return head


def _feature(recipe: Recipe, target: Target) -> HeadConfig:
    width = target.hidden_size
    return AttentionFreeConfig(
        **_common(target),
        input_projection=width,
        num_blocks=recipe.head.blocks,
        block_activation="silu",
        block_residual=True,
        output_projection=True,
    )


def _surgery(recipe: Recipe, target: Target) -> HeadConfig:
    return AttentionFreeConfig(
        **_common(target), use_hidden=False, num_blocks=recipe.head.blocks, block_activation="relu"
    )


def _projection(recipe: Recipe, target: Target) -> HeadConfig:
    return AttentionFreeConfig(
        **_common(target),
        use_embedding=False,
        input_projection=recipe.head.width or target.hidden_size,
        input_activation="silu",
        own_lm_head=True,
        draft_vocab_size=_draft_vocab(recipe, target),
    )


def _eagle1(recipe: Recipe, target: Target) -> HeadConfig:
    return EagleConfig(**_common(target), **_decoder(target), fc_bias=True)


def _eagle3(recipe: Recipe, target: Target) -> HeadConfig:
    layers = target.num_layers
    ids = list(recipe.head.layer_ids) or [2, layers // 2, layers - 3]
    if len(ids) != 3:
        raise UsageError(f"head.layer_ids is {ids}", "Three layers were expected: the producer's layout fuses three")
    return Eagle3Config(
        **_common(target),
        **_decoder(target),
        draft_vocab_size=_draft_vocab(recipe, target),
        eagle_aux_hidden_state_layer_ids=ids,
        own_lm_head=True,
    )


def _medusa(recipe: Recipe, target: Target) -> HeadConfig:
    return MedusaConfig(
        **_common(target),
        num_heads=recipe.unroll.steps,
        num_hidden_layers=recipe.head.blocks,
    )


_FAMILIES = {
    "feature": _feature,
    "surgery": _surgery,
    "projection": _projection,
    "eagle1": _eagle1,
    "eagle3": _eagle3,
    "medusa": _medusa,
}


def _common(target: Target) -> dict[str, Any]:
    return {"vocab_size": target.vocab_size, "hidden_size": target.hidden_size}


def _draft_vocab(recipe: Recipe, target: Target) -> int:
    wanted = recipe.head.draft_vocab_size or target.vocab_size
    if wanted > target.vocab_size:
        raise UsageError(
            f"head.draft_vocab_size is {wanted}", f"At most the target's {target.vocab_size} tokens were expected"
        )
    return wanted


def _decoder(target: Target) -> dict[str, Any]:
    """A decoder layer as the target's own are."""
    described = target.config
    heads = described.num_attention_heads or max(1, target.hidden_size // 64)
    return {
        "intermediate_size": described.intermediate_size or 4 * target.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": described.num_key_value_heads or heads,
        # Producers' configs imply this split, whatever the target's own attention has.
        "head_dim": target.hidden_size // heads,
        "rms_norm_eps": described.rms_norm_eps or TransformerHeadConfig.rms_norm_eps,
        "max_position_embeddings": described.max_position_embeddings or 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "num_hidden_layers": 1,
    }
