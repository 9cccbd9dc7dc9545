"""Every architecture and flag of our heads, as configs for the known-answer targets."""

from __future__ import annotations

from collections.abc import Callable

from vllm_eagle_plugin.configs import AttentionFreeConfig, Eagle3Config, EagleConfig, HeadConfig

from .known_answer.target import VOCAB, WIDTH

#: Size of the reduced draft vocabulary, and of the language spoken by targets for such heads.
SUBSET = 16

_BASE = {"vocab_size": VOCAB, "hidden_size": WIDTH}
_REDUCED = {"own_lm_head": True, "draft_vocab_size": SUBSET}
_FEATURE = {
    **_BASE,
    "input_projection": WIDTH,
    "num_blocks": 2,
    "block_residual": True,
    "output_projection": True,
}
_PROJECTION = {**_BASE, "use_embedding": False, "input_activation": "silu", "own_lm_head": True}
_DECODER = {**_BASE, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 512}
_EAGLE3 = {**_DECODER, "eagle_aux_hidden_state_layer_ids": [1, 3, 5], "own_lm_head": True}
_AUX = {"eagle_aux_hidden_state_layer_ids"}

CASES: dict[str, Callable[[], HeadConfig]] = {
    # attention-free
    "feature": lambda: AttentionFreeConfig(**_FEATURE),
    "feature-own-embedding": lambda: AttentionFreeConfig(**_FEATURE, own_embedding=True, embedding_size=48),
    "feature-same-pairing": lambda: AttentionFreeConfig(**_FEATURE, token_pairing="same"),
    "feature-own-lm-head": lambda: AttentionFreeConfig(**_FEATURE, own_lm_head=True, lm_head_bias=True),
    "feature-reduced": lambda: AttentionFreeConfig(**_FEATURE, **_REDUCED),
    "surgery": lambda: AttentionFreeConfig(**_BASE, use_hidden=False, num_blocks=2, block_activation="relu"),
    "surgery-own-embedding": lambda: AttentionFreeConfig(
        **_BASE, use_hidden=False, num_blocks=1, block_activation="relu", own_embedding=True
    ),
    "projection": lambda: AttentionFreeConfig(**_PROJECTION, input_projection=WIDTH),
    "projection-narrow": lambda: AttentionFreeConfig(**_PROJECTION, input_projection=64),
    "projection-softcap": lambda: AttentionFreeConfig(**_PROJECTION, input_projection=WIDTH, logit_softcap=30.0),
    # EAGLE-1/2
    "eagle": lambda: EagleConfig(**_DECODER),
    "eagle-fc-bias": lambda: EagleConfig(**_DECODER, fc_bias=True),
    "eagle-qkv-bias": lambda: EagleConfig(**_DECODER, fc_bias=True, qkv_bias=True, o_bias=True, mlp_bias=True),
    "eagle-qkv-bias-only": lambda: EagleConfig(**_DECODER, fc_bias=True, qkv_bias=True),
    "eagle-qk-norm": lambda: EagleConfig(**_DECODER, qk_norm=True),
    "eagle-input-norm": lambda: EagleConfig(**_DECODER, input_norm=True, output_norm=True),
    "eagle-enorm-hnorm": lambda: EagleConfig(**_DECODER, embed_norm=True, hidden_norm=True),
    "eagle-post-norm": lambda: EagleConfig(**_DECODER, output_norm=True, feedback="post_norm"),
    "eagle-two-layers": lambda: EagleConfig(**_DECODER, num_hidden_layers=2),
    "eagle-own-lm-head": lambda: EagleConfig(**_DECODER, own_lm_head=True, own_embedding=True),
    "eagle-token-map": lambda: EagleConfig(**_DECODER, **_REDUCED),
    # EAGLE-3
    "eagle3": lambda: Eagle3Config(**_EAGLE3),
    "eagle3-reduced": lambda: Eagle3Config(**_EAGLE3, draft_vocab_size=SUBSET),
    "eagle3-shared-lm-head": lambda: Eagle3Config(**{**_EAGLE3, "own_lm_head": False}),
    "eagle3-one-aux": lambda: Eagle3Config(
        **{**_EAGLE3, "eagle_aux_hidden_state_layer_ids": [4]}, num_aux_hidden_states=1
    ),
    "eagle3-five-aux": lambda: Eagle3Config(
        **{**_EAGLE3, "eagle_aux_hidden_state_layer_ids": [0, 1, 2, 4, 5]}, num_aux_hidden_states=5
    ),
    "eagle3-no-aux": lambda: Eagle3Config(
        **{k: v for k, v in _EAGLE3.items() if k not in _AUX}, use_aux_hidden_state=False
    ),
    "eagle3-no-final-norm": lambda: Eagle3Config(**_EAGLE3, output_norm=False, fc_bias=True),
    "eagle3-post-norm": lambda: Eagle3Config(**_EAGLE3, feedback="post_norm"),
    "eagle3-norm-before-fc": lambda: Eagle3Config(**_EAGLE3, norm_before_fc=True, norm_before_residual=True),
    "eagle3-fc-norm": lambda: Eagle3Config(**_EAGLE3, fc_norm=True, qkv_bias=True, o_bias=True),
    "eagle3-bare-layer": lambda: Eagle3Config(**_EAGLE3, input_norm=False, hidden_norm=False),
    "eagle3-two-layers": lambda: Eagle3Config(**_EAGLE3, num_hidden_layers=2, qk_norm=True),
}

_DEFAULT = {**_EAGLE3, "eagle_aux_hidden_state_layer_ids": [2, 4, 5]}  # every trainer's choice for eight layers

#: More, for heads in their producers' layouts (`tests.producers`).
LAYOUTS: dict[str, Callable[[], HeadConfig]] = {
    "eagle-hass": lambda: EagleConfig(**_DECODER, embed_norm=True, hidden_norm=True, output_norm=True),
    "eagle-speculators": lambda: EagleConfig(
        **_DECODER, fc_bias=True, embed_norm=True, input_norm=True, output_norm=True
    ),
    "eagle-input-norm-post": lambda: EagleConfig(**_DECODER, input_norm=True, output_norm=True, feedback="post_norm"),
    "eagle-four-norms": lambda: EagleConfig(
        **_DECODER, embed_norm=True, hidden_norm=True, input_norm=True, output_norm=True, feedback="post_norm"
    ),
    "eagle3-default": lambda: Eagle3Config(**_DEFAULT),
    "eagle3-default-reduced": lambda: Eagle3Config(**_DEFAULT, draft_vocab_size=SUBSET),
    "eagle3-default-shared": lambda: Eagle3Config(**{**_DEFAULT, "own_lm_head": False}),
    "eagle3-default-fc-norm": lambda: Eagle3Config(**_DEFAULT, fc_norm=True),
    "eagle3-default-no-norm": lambda: Eagle3Config(**_DEFAULT, output_norm=False),
    "eagle3-default-norm-before-fc": lambda: Eagle3Config(**_DEFAULT, norm_before_fc=True),
    "eagle3-narrow": lambda: Eagle3Config(
        **{**_DEFAULT, "hidden_size": 128, "intermediate_size": 256}, target_hidden_size=WIDTH, own_embedding=True
    ),
    "eagle3-qwen3": lambda: Eagle3Config(**_DEFAULT, qk_norm=True, norm_before_residual=True, feedback="post_norm"),
    "eagle3-four-aux": lambda: Eagle3Config(
        **{**_EAGLE3, "eagle_aux_hidden_state_layer_ids": [2, 4, 5, 7]}, num_aux_hidden_states=4
    ),
    "eagle3-1": lambda: Eagle3Config(**_DEFAULT, draft_vocab_size=SUBSET, fc_norm=True, feedback="post_norm"),
    "eagle3-deepspec": lambda: Eagle3Config(
        **{**_EAGLE3, "eagle_aux_hidden_state_layer_ids": [1, 3, 4, 5, 7], "own_lm_head": False},
        num_aux_hidden_states=5,
        qk_norm=True,
    ),
    "peagle": lambda: Eagle3Config(**_DEFAULT, draft_vocab_size=SUBSET, parallel_drafting=True, mask_token_id=7),
}


def draft_length(config: HeadConfig) -> int:
    """num_speculative_tokens to test a head with."""
    return config.max_draft_tokens or 4
