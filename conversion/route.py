"""The layout a head is written in: stock vLLM's where one of its classes computes exactly this head."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..configs import Eagle3Config, EagleConfig, HeadConfig, TransformerHeadConfig
from ..errors import HeadError
from ..targets.stored import Stored
from ..targets.target import Target
from .installed import known_vllm
from .quantised import DEQUANTISE, Quantised, check_whole, written_parts
from .reading import Reading

#: Target families whose embedding and lm_head stock vLLM cannot find for a head.
_NOT_STOCK_TARGETS = {"gpt2", "gemma", "gemma2", "gemma3", "gemma3_text"}


@dataclass(frozen=True)
class Layout:
    """What is written: config.json without provenance, tensors, and whether the plugin is needed."""

    config: dict[str, Any]
    tensors: dict[str, Stored]
    needs_plugin: bool
    why: str
    #: Settings of the serve command that this head needs.
    speculative: dict[str, Any] = field(default_factory=dict)
    quantised: bool = False


def choose_layout(reading: Reading, target: Target) -> Layout:
    """Stock where possible, so that the result serves without the plugin too.

    Raises:
        HeadError: the installed vLLM serves no such head for this target.
    """
    _check_target(reading, target)
    layout = _choose(reading, target)
    if not any(isinstance(tensor, Quantised) for tensor in layout.tensors.values()):
        return layout
    check_whole(reading.tensors, reading.quantisation)
    if layout.needs_plugin:
        raise HeadError(
            f"the head is quantised, and {layout.why}",
            "Quantised heads are served by vLLM's own classes only",
            DEQUANTISE,
        )
    return replace(
        layout,
        config={**layout.config, "quantization_config": reading.quantisation},
        tensors=written_parts(layout.tensors),
        why=f"{layout.why}, quantised as it is",
        quantised=True,
    )


def _choose(reading: Reading, target: Target) -> Layout:
    obstacles = stock_obstacles(reading.config, target)
    if not obstacles:
        assert isinstance(reading.config, TransformerHeadConfig)
        parallel = isinstance(reading.config, Eagle3Config) and reading.config.parallel_drafting
        return Layout(
            _stock_config(reading.config),
            reading.tensors,
            False,
            "a stock vLLM class computes this head",
            {"parallel_drafting": True} if parallel else {},
        )
    if isinstance(reading.config, Eagle3Config) and reading.config.parallel_drafting:
        raise HeadError(
            f"this P-EAGLE head needs what stock vLLM lacks: {', '.join(obstacles)}",
            "Heads that draft in parallel run on vLLM's own classes only",
            "Train it without that, or as a plain EAGLE-3 head",
        )
    config = reading.config.to_dict()
    config.pop("transformers_version", None)
    return Layout(config, reading.tensors, True, f"stock vLLM lacks: {', '.join(obstacles)}")


def aux_refusal(config: HeadConfig, target: Target) -> str:
    """Why vLLM hands an EAGLE-3 head nothing of this target; empty if it does, or does not know the target."""
    reads_aux = isinstance(config, Eagle3Config) and config.use_aux_hidden_state
    if reads_aux and known_vllm().hands_over_aux(target.config.architecture) is False:
        return f"{target.config.architecture} has no SupportsEagle3: it hands no hidden states of its layers over"
    return ""


def qwen3(config: HeadConfig) -> bool:
    """Whether a head is for vLLM's class with q/k norms, where q, k and v may have biases and o has none."""
    return isinstance(config, Eagle3Config) and config.qk_norm and not config.o_bias


def _check_target(reading: Reading, target: Target) -> None:
    refusal, host = aux_refusal(reading.config, target), known_vllm()
    if refusal and host.installed:
        raise HeadError(
            f"{host} serves no EAGLE-3 head for the target {target.name}: its {refusal}",
            "An EAGLE-3 head reads them",
            "Train a head that reads the last hidden state (vllm-eagle train, eagle1 or feature), or use a vLLM whose "
            "class has it",
        )
    if refusal:
        reading.notes.append(f"{host} would not serve it: {refusal}; a later version may")


def stock_obstacles(config: HeadConfig, target: Target) -> list[str]:
    """What keeps `EagleLlamaForCausalLM`, `Eagle3LlamaForCausalLM` and `Eagle3Qwen3ForCausalLM` from computing it."""
    if not isinstance(config, TransformerHeadConfig):
        return ["heads without attention"]
    lacks = {
        "fc.bias": config.fc_bias,
        "q/k/v biases of their own": config.o_bias or config.mlp_bias or (config.qkv_bias and not qwen3(config)),
        "q/k norms": config.qk_norm and not qwen3(config),
        "embedding scaling": config.embed_scale != 1.0,
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        "RoPE of this kind over the target's whole length": not _stock_rope(config, target),
        f"heads without a window for a target with one of {target.config.window} tokens": (
            config.sliding_window is None and target.config.window is not None
        ),
        "logit soft-caps": config.logit_softcap is not None,
        "an lm_head bias": config.lm_head_bias,
        f"a way to lend heads the weights of a {target.config.model_type} target": target.config.model_type
        in _NOT_STOCK_TARGETS,
    }
    if isinstance(config, EagleConfig):
        lacks |= {
            "norms around EAGLE-1 layers": any(
                (config.embed_norm, config.hidden_norm, config.input_norm, config.output_norm)
            ),
            "an own lm_head for EAGLE-1": config.own_lm_head,
            "a window for EAGLE-1": config.sliding_window is not None,
        }
    elif isinstance(config, Eagle3Config):
        lacks |= {
            "EAGLE-3 without its norms": not (config.output_norm and config.input_norm and config.hidden_norm),
            "EAGLE-3 without aux hidden states": not config.use_aux_hidden_state,
        }
    return [what for what, lacking in lacks.items() if lacking]


def _stock_rope(config: TransformerHeadConfig, target: Target) -> bool:
    """Whether vLLM's `get_rope` computes what transformers does, at every position of the target."""
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind == "yarn":  # its table ends there
        trained = rope["original_max_position_embeddings"] * rope["factor"]
        return trained >= (target.config.max_position_embeddings or 0)
    return kind in ("default", "linear", "llama3") or (kind == "proportional" and rope.get("factor", 1.0) == 1.0)


def _stock_config(config: TransformerHeadConfig) -> dict[str, Any]:
    rope = dict(config.rope_parameters or {})
    written: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM" if qwen3(config) else "LlamaForCausalLM"],
        "model_type": "qwen3" if qwen3(config) else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": rope.get("rope_theta"),
        "rope_parameters": rope,
        "tie_word_embeddings": False,
    }
    if isinstance(config, Eagle3Config):
        written |= {
            "draft_vocab_size": config.draft_vocab,
            "target_hidden_size": config.target_width,
            "num_aux_hidden_states": config.num_aux_hidden_states,
            "eagle_aux_hidden_state_layer_ids": config.eagle_aux_hidden_state_layer_ids,
            "norm_before_residual": config.norm_before_residual,
            "norm_before_fc": config.norm_before_fc,
            "fc_norm": config.fc_norm,
            "norm_output": config.feedback == "post_norm",
        }
        if config.sliding_window is not None:
            written |= {
                "sliding_window": config.sliding_window,
                "layer_types": ["sliding_attention"] * config.num_hidden_layers,
            }
        if qwen3(config):
            written |= {"attention_bias": config.qkv_bias, "use_sliding_window": config.sliding_window is not None}
        if config.parallel_drafting:
            written |= {"pard_token": config.mask_token_id, "parallel_drafting": True}
    return written
