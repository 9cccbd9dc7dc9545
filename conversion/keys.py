"""Every key that configs of draft heads are known to have, and what it means for what a head computes.

Data, not code: `accounting` reads it. Names are those of transformers' configs and of the trainers; keys that a
trainer copied from its target stand here too, so that a head which carries one is told apart from a head which
computes with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Role(Enum):
    """What a key can do to a head."""

    #: No part of the forward pass: names, tokens, training, generation.
    NOTHING = "nothing"
    #: Says what tensors are there and of which shape; they decide.
    TENSORS = "tensors"
    #: Decides what is computed: its reader must look at it.
    COMPUTES = "computes"
    #: Changes what layers of some models compute, and no layer that heads are known to have: only its neutral
    #: values leave a head what it is, unless the trainer's layers are known not to read it.
    ELSEWHERE = "elsewhere"
    #: An object whose keys are accounted for one by one.
    OBJECT = "object"


@dataclass(frozen=True)
class Key:
    role: Role
    means: str
    #: Values that change nothing, besides null and empty ones.
    neutral: tuple[Any, ...] = ()


_NOTHING = {
    "names the model, its files or the code that made them": (
        "architectures model_type _name_or_path name_or_path transformers_version torch_dtype dtype auto_map _commit_hash "
        "speculators_version speculators_model_type speculators_config target_model_type target_model "
        "target_model_name_or_path target_model_path base_model base_model_name_or_path eagle_provenance "
        "transformer_layer_architecture has_no_defaults_at_init _torchspec_version modelopt_version license "
        "language model_name tokenizer_class processor_class algorithm draft_model_type method version "
        "training_config eagle_version num_lookahead_tokens num_speculative_tokens block_size"
    ),
    "says which tokens have a meaning of their own": (
        "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id decoder_start_token_id "
        "image_token_id image_token_index video_token_id audio_token_id boi_token_id eoi_token_id "
        "boi_token_index eoi_token_index vision_start_token_id vision_end_token_id forced_bos_token_id "
        "forced_eos_token_id suppress_tokens begin_suppress_tokens bad_words_ids"
    ),
    "matters in training alone": (
        "initializer_range initializer_factor attention_dropout hidden_dropout hidden_dropout_prob attn_dropout "
        "attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop dropout embd_dropout classifier_dropout "
        "router_aux_loss_coef router_jitter_noise output_router_logits aux_loss_alpha seq_aux router_z_loss_coef "
        "embed_requires_grad gradient_checkpointing num_depths down_sample_ratio down_sample_ratio_min ttt_steps "
        "loss_type loss_decay label_smoothing layerdrop mtp_loss_lambda max_seq_len_train eagle_loss_decay_factor "
        "eagle_hidden_state_distillation eagle_self_logit_distillation eagle_freeze_base_model "
        "eagle_report_acc eagle_offline eagle_use_torch_compile eagle_ttt_steps eagle_reuse_base_decoder "
        "eagle_mix_hidden_states eagle_decoder_type draft_vocab_size_training num_anchors"
    ),
    "says how a model is run, not what it computes": (
        "use_cache cache_implementation _attn_implementation attn_implementation _attn_implementation_autoset "
        "_experts_implementation experts_implementation output_attentions output_hidden_states return_dict use_return_dict "
        "is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder torchscript "
        "use_bfloat16 pruned_heads chunk_size_feed_forward problem_type id2label label2id num_labels finetuning_task "
        "task_specific_params prefix tf_legacy_loss pretraining_tp bf16 fp16 use_flash_attn use_flash_attention "
        "use_fused_rms_norm keep_in_fp32"
    ),
    "counts for windows that another key switches on": "max_window_layers",
    "counts for RoPE that scales, whose reader looks at it": "original_max_position_embeddings",
    "is meant for generation": (
        "temperature top_k top_p typical_p do_sample num_beams num_beam_groups diversity_penalty repetition_penalty "
        "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences early_stopping "
        "max_length min_length output_scores return_dict_in_generate remove_invalid_values "
        "exponential_decay_length_penalty max_new_tokens"
    ),
}  # fmt: skip
_TENSORS = {
    "a size, which the tensors have": (
        "vocab_size draft_vocab_size hot_vocab_size truncated_vocab_size hidden_size target_hidden_size "
        "intermediate_size num_hidden_layers draft_num_hidden_layers n_layer n_embd d_model ffn_dim ffn_hidden_size "
        "mlp_layers num_layers d_proj target_layer_count parallel_draft_heads_num_layers"
    ),
    "says which biases there are": (
        "attention_bias mlp_bias qkv_bias bias use_bias fusion_bias eagle_fc_bias fc_bias attn_bias attention_out_bias "
        "add_qkv_bias add_bias_linear o_proj_bias lm_head_bias"
    ),
    "says which norms there are": (
        "norm_before_fc fc_norm layernorms add_para_norm skip_prenorm skip_output_norm use_input_layernorm_in_first_layer "
        "use_last_layernorm use_mtp_layernorm input_norm hidden_norm"
    ),
    "shows in fc, lm_head and mask_hidden": (
        "num_aux_hidden_states use_aux_hidden_state tie_word_embeddings parallel_drafting mask_token_id pard_token "
        "ptd_token_id"
    ),
    "describes experts, of which the head has none": (
        "num_local_experts num_experts n_routed_experts n_shared_experts num_experts_per_tok num_experts_per_token "
        "top_k_experts moe_top_k moe_topk moe_intermediate_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size first_k_dense_replace moe_layer_freq decoder_sparse_step mlp_only_layers "
        "moe_layers interleave_moe_layer_step norm_topk_prob topk_method topk_group n_group routed_scaling_factor "
        "scoring_func moe_router_topk expert_intermediate_size use_moe enable_moe_block moe_num_shared_experts "
        "experts_per_token intermediate_size_mlp moe_layers_enum moe_router_activation_func use_routing_bias "
        "moe_renormalize router_dtype shared_intermediate_size num_shared_experts ep_size"
    ),
    "describes latent attention (MLA), which the head does not have": (
        "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim qk_head_dim index_head_dim index_n_heads "
        "index_topk o_lora_rank mla_use_nope num_nextn_predict_layers"
    ),
    "describes linear attention or state spaces, which the head does not have": (
        "linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads linear_num_value_heads "
        "full_attention_interval mamba_d_conv mamba_d_state mamba_d_head mamba_n_heads mamba_n_groups mamba_expand "
        "mamba_chunk_size mamba_conv_bias mamba_proj_bias attn_layer_period attn_layer_offset conv_L_cache "
        "linear_attn_config attn_type_list mamba_ssm_dtype"
    ),
    "describes what reads images and sound, which the head does not have": (
        "vision_config audio_config text_config vision_feature_layer projector_hidden_act mm_tokens_per_image "
        "deepstack_visual_indexes vision_lora speech_lora"
    ),
}  # fmt: skip
_COMPUTES = {
    "the activation of the MLP": "hidden_act",
    "the epsilon of norms": "rms_norm_eps",
    "how attention splits into heads": "num_attention_heads num_key_value_heads head_dim",
    "RoPE": "rope_theta rope_scaling rope_parameters partial_rotary_factor",
    "the length trained for": "max_position_embeddings max_sequence_length",
    "which tokens a position attends to": "sliding_window layer_types",
    "the layers of the target that are read": ("eagle_aux_hidden_state_layer_ids layer_ids target_layer_ids"),
    "where the residual starts": "norm_before_residual",
    "what is fed back": "norm_output",
    "the token beside a hidden state": "token_pairing",
}
_ELSEWHERE: dict[str, dict[str, tuple[Any, ...]]] = {
    "caps logits": {
        "attn_logit_softcapping": (), "final_logit_softcapping": (), "attn_logit_softcap": (), "attn_logit_cap": (),
        "logits_soft_cap": (), "logit_softcap": (), "router_logit_softcapping": (),
    },
    "scales logits": {
        "logit_scale": (1,), "logits_scaling": (1,), "output_multiplier_scale": (1,), "lm_head_multiplier": (1,),
        "dim_model_base": (), "mup_width_scale": (1,), "final_logits_scale": (1,),
    },
    "scales embeddings": {
        "embedding_multiplier": (1,), "scale_emb": (1,), "embed_scale": (1,), "scale_embedding": (False,),
        "embedding_multiplier_scale": (1,), "mup_embedding_multiplier": (1,), "scale_input_embeds": (False,),
    },
    "scales what a block adds to the stream": {
        "residual_multiplier": (1,), "scale_depth": (), "mup_denominator": (), "residual_scale": (1,),
    },
    "scales attention": {
        "attention_multiplier": (), "query_pre_attn_scalar": (), "attn_scale": (), "attention_scale": (),
        "key_multiplier": (1,), "attention_in_multiplier": (1,), "attention_out_multiplier": (1,),
        "attn_temperature_tuning": (False, 0), "floor_scale": (), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,), "logn_attn": (False,),
        "use_logn_attn": (False,), "scaling_attention": (),
    },
    "changes the MLP's arithmetic": {
        "hidden_activation": (), "activation_function": (), "activation": (), "swiglu_limit": (), "mlp_multipliers": (),
        "activation_sparsity_pattern": (), "gelu_approximate": (), "use_double_wide_mlp": (False,), "swiglu_alpha": (),
    },
    "is the epsilon of other norms": {
        "layer_norm_eps": (), "layer_norm_epsilon": (), "norm_eps": (), "norm_epsilon": (), "layernorm_epsilon": (),
    },
    "changes norms": {
        "norm_type": ("rms", "rmsnorm", "rms_norm"), "use_post_norm": (False,), "use_qk_norm": (False,),
        "qk_norm": (False,), "qk_layernorm": (False,), "sandwich_norm": (False,), "zero_centered_gamma": (False,),
        "use_pre_post_norm": (False,), "post_norm": (False,), "qk_norm_type": (), "normalization": ("rms", "rmsnorm"),
        "apply_residual_connection_post_layernorm": (False,), "use_rmsnorm": (True,), "rmsnorm": (True,),
    },
    "lets attention see less, or more": {
        "use_sliding_window": (False,), "attention_chunk_size": (), "sliding_window_pattern": (),
        "_sliding_window_pattern": (), "sliding_window_size": (), "attention_window_size": (), "interleaved_attention": (),
        "swa_window_size": (), "is_causal": (True,), "use_bidirectional_attention": (False,), "num_kv_shared_layers": (0,),
        "attention_sink": (False,), "add_swa_attention_sink_bias": (False,), "attention_sinks": (False,),
        "num_attention_sinks": (0,), "attention_type": (), "dual_chunk_attention_config": (), "window_size": (),
        "block_sparse_attention": (False,), "sparse_attention_config": (),
    },
    "changes the order or the arithmetic of parts": {
        "use_parallel_residual": (False,), "parallel_attn": (False,), "parallel_residual": (False,), "clip_qkv": (),
        "alibi": (False,), "use_alibi": (False,), "attn_output_gate": (False,), "use_gated_attention": (False,),
        "attention_value_scale": (1,), "kv_sharing": (False,), "parallel_draft_step": (0, 1), "attention_k_eq_v": (False,), "next_layer_regular": (True,),
        "altup_num_inputs": (), "laurel_rank": (), "hidden_size_per_layer_input": (0,), "vocab_size_per_layer_input": (),
        "global_head_dim": (), "num_global_key_value_heads": (), "per_layer_config": (), "block_configs": (),
    },
    "changes RoPE": {
        "rope_interleaved": (False,), "rope_interleave": (False,), "is_neox_style": (True,), "rope_ratio": (1,),
        "use_rope": (True,), "no_rope_layers": (), "no_rope_layer_interval": (0,), "position_embedding_type": ("rope",),
        "rotary_pct": (1,), "rotary_emb_fraction": (1,), "rotary_dim": (), "rotary_emb_base": (), "rope_local_base_freq": (),
        "rope_dim": (), "nope": (False,), "rope_mscale": (), "use_dynamic_ntk": (False,), "mrope_section": (),
        "swa_rope_theta": (), "local_rope_theta": (), "rope_pct": (1,),
    },
    "says how weights are quantised": {"quantization_config": (), "compression_config": ()},
}  # fmt: skip
_OBJECTS = {
    "the layers": "transformer_layer_config model",
    "the exporter's flags": "eagle_config",
}

KEYS: dict[str, Key] = {
    **{n: Key(Role.NOTHING, means) for means, names in _NOTHING.items() for n in names.split()},
    **{n: Key(Role.TENSORS, means) for means, names in _TENSORS.items() for n in names.split()},
    **{n: Key(Role.COMPUTES, means) for means, names in _COMPUTES.items() for n in names.split()},
    **{n: Key(Role.ELSEWHERE, means, neutral) for means, keys in _ELSEWHERE.items() for n, neutral in keys.items()},
    **{n: Key(Role.OBJECT, means) for means, names in _OBJECTS.items() for n in names.split()},
}
#: Keys about attention, its RoPE and the norms around it: nothing to a head that has none.
OF_ATTENTION = frozenset(
    name for name, key in KEYS.items()
    if key.means in ("how attention splits into heads", "RoPE", "which tokens a position attends to", "scales attention",
                     "changes RoPE", "lets attention see less, or more", "the epsilon of norms", "the length trained for")
)  # fmt: skip
#: Names of keys that nobody here knows and that sound like arithmetic.
_ARITHMETIC = re.compile(
    r"multiplier|scal(e|ing)|soft_?cap|act(ivation)?(_fn|_func)?$|window|norm|eps(ilon)?$|rope|rotary|alibi|sink|"
    r"clip|residual|gate|bias|temperature_tuning"
)


def key_of(name: str) -> Key | None:
    """What is known of a key; None for one that nobody knows and that does not sound like arithmetic."""
    if name in KEYS:
        return KEYS[name]
    if _ARITHMETIC.search(name):
        return Key(Role.ELSEWHERE, "is unknown, and sounds as if it changed what is computed", (False, 0, 1))
    return None
