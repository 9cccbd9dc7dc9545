"""Tiny models with random weights, of every architecture that transformers has a class for.

Sizes are set by the names of configs' keys, in nested configs too; what an architecture needs besides stands in
`EXTRA`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

VOCAB, WIDTH, HEADS, HEAD_DIM, LAYERS = 24, 128, 4, 32, 4
#: The first token that is no placeholder of an image and marks no end.
PLAIN = 8

#: Sizes by a key's name; the first that matches holds.
_SIZES: tuple[tuple[str, int], ...] = tuple(
    (rf"^({names})$", size)
    for names, size in (
        ("vocab_size|text_vocab_size|vocab_size_per_layer_input|n_vocab|src_vocab_size", VOCAB),
        ("hidden_size|d_model|n_embd|embed_dim|word_embed_proj_dim|out_hidden_size|projection_dim|text_hidden_size|output_dim|vision_output_dim|projector_output_dim|projector_input_dim|text_embed_dim|lm_hidden_size|emb_dim|decoder_hidden_size|audio_embed_dim", WIDTH),
        ("num_hidden_layers|n_layer|n_layers|num_layers|depth|encoder_layers|decoder_layers|num_encoder_layers|num_decoder_layers", LAYERS),
        ("num_attention_heads|n_head|n_heads|num_heads|encoder_attention_heads|decoder_attention_heads|attention_heads|global_num_attention_heads|num_query_heads", HEADS),
        ("num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|num_global_key_value_heads|swa_num_key_value_heads", 2),
        ("head_dim|global_head_dim|swa_head_dim|attention_head_dim|linear_key_head_dim|linear_value_head_dim|qk_rope_head_dim|qk_nope_head_dim|v_head_dim|index_head_dim|attn_head_dim|kda_head_dim|swa_v_head_dim", HEAD_DIM),
        ("q_lora_rank|kv_lora_rank|o_lora_rank|index_topk", 32),
        ("n_routed_experts|num_local_experts|num_experts|moe_num_experts|ffn_num_experts|num_routed_experts", 4),
        ("num_experts_per_tok|num_experts_per_token|moe_k|moe_top_k|moe_topk|top_k_experts", 2),
        ("n_group|topk_group|num_expert_group|n_groups|mamba_n_groups", 1),
        (".*(intermediate|ffn|inner|mlp|feed_forward).*(size|dim)(_mlp|_moe)?|hidden_dim|n_inner|encoder_ffn_dim|decoder_ffn_dim|ffn_hidden_size|mlp_hidden_size", 128),
        ("max_position_embeddings|n_positions|original_max_position_embeddings|max_seq_len|max_sequence_length|max_source_positions|max_target_positions|seq_length", 512),
        ("sliding_window|attention_chunk_size|local_window_size", 64),
        ("image_size", 28),
        ("patch_size", 14),
        ("num_mel_bins", 16),
    )
)  # fmt: skip
_TOKEN = re.compile(r"(_token_id|_token_index|_token_ids|_id)$")
_MLA = {"num_key_value_heads": HEADS}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_GEMMA4 = {"per_layer_config": None, "layer_types": _ALTERNATING, "hidden_size_per_layer_input": 16}
_GEMMA3N = {
    "layer_types": _ALTERNATING, "activation_sparsity_pattern": [0.0] * LAYERS, "intermediate_size": [256] * LAYERS,
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16, "laurel_rank": 8,
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
_PARTIAL_MROPE = {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
#: What an architecture needs besides, by the path of its key; None leaves the key out.
EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("AXK1ForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM", "GlmMoeDsaForCausalLM", "MiniCPM3ForCausalLM"), _MLA),
    **{name: {"text_config.rope_parameters": _MROPE} for name in ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "PaddleOCRVLForConditionalGeneration")},
    **{name: {"text_config.rope_parameters": _PARTIAL_MROPE} for name in ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "GlmOcrForConditionalGeneration")},
    "Gemma4ForCausalLM": _GEMMA4,
    **{name: {f"text_config.{k}": v for k, v in _GEMMA4.items()} for name in ("Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "DiffusionGemmaForBlockDiffusion")},
    "Gemma3nForCausalLM": _GEMMA3N,
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 2},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 32},
    "GraniteMoeHybridForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 32, "layer_types": ["mamba", "attention"] * 2},
    "NemotronForCausalLM": {"num_key_value_heads": 2},
    "Step3p7ForConditionalGeneration": {"text_config.sliding_window": 64},
    "CohereCompassForConditionalGeneration": {"text_config.rope_parameters": {k: {"rope_type": "default", "rope_theta": 10000.0} for k in ("full_attention", "sliding_attention")}},
    "Cosmos3EdgeForConditionalGeneration": {"text_config.rope_parameters": {**_MROPE, "mrope_interleaved": True}},
    "GPTJForCausalLM": {"rotary_dim": 16},
    "LongcatFlashForCausalLM": {**_MLA},
    "Qwen2_5OmniForConditionalGeneration": {"thinker_config.text_config.tie_word_embeddings": False},
    "Qwen3VLMoeForConditionalGeneration": {"text_config.tie_word_embeddings": False},
}  # fmt: skip


def tiny_config(architecture: str) -> PretrainedConfig:
    """The shrunken config of an architecture."""
    cls = getattr(transformers, architecture).config_class
    described = shrunken(cls().to_dict())
    for path, value in EXTRA.get(architecture, {}).items():
        *outer, key = path.split(".")
        part = described
        for name in outer:
            part = part.setdefault(name, {})
        if value is None:
            part.pop(key, None)
        else:
            part[key] = value
    return cls.from_dict(described)


def tiny_model(architecture: str) -> PreTrainedModel:
    """A model of the architecture, with a few thousand random weights in fp32."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(tiny_config(architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def shrunken(described: dict[str, Any]) -> dict[str, Any]:
    depth = next(
        (
            v
            for k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
            if isinstance(v := described.get(k), int)
        ),
        0,
    )
    return {key: _shrunk(key, value, depth) for key, value in described.items()}


def _shrunk(key: str, value: Any, depth: int) -> Any:
    if isinstance(value, dict) and ("config" in key or "model_type" in value):
        return shrunken(value)
    if isinstance(value, list) and depth and len(value) in (depth, depth + 1):
        return value[: len(value) - depth + LAYERS]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if _TOKEN.search(key):
        return value if value < PLAIN else sum(map(ord, key)) % PLAIN
    return next((size for pattern, size in _SIZES if re.match(pattern, key)), value)
