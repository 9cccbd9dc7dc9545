"""What stock vLLM would do with a head as it lies there: run it, refuse it, or load it and ruin it.

From reading vLLM 0.32 and from running it on fixtures of every case here (`tests/test_stock_verdict.py`).
Its EAGLE loaders check no names that are missing and drop every unexpected `*.bias`, which is why most
mistakes are silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..configs import AttentionFreeConfig, Eagle3Config, TransformerHeadConfig
from ..targets.target import Target
from .aux_layers import KEY, default_layers
from .described import Described
from .installed import KnownVllm, known_vllm
from .reading import Reading
from .renaming import LEFT_OUT
from .rope import DEFAULT_THETA
from .route import aux_refusal
from .source import Source

_EAGLE_PARTS = ("embed_tokens.", "fc.", "layers.")
_EAGLE3_PARTS = ("embed_tokens.", "fc.", "fc_norm.", "input_norm.", "layers.", "midlayer.", "norm.", "lm_head.", "d2t", "t2d", "mask_hidden")  # fmt: skip


class Outcome(StrEnum):
    """What comes of a head as it lies there."""

    RUNS = "runs"
    REFUSES = "refuses"
    #: It loads without an error, and accepts little.
    RUINS = "ruins"


_WORDS = {
    Outcome.RUNS: "runs it as it is",
    Outcome.REFUSES: "refuses it",
    Outcome.RUINS: "loads it without an error and ruins it",
}


@dataclass(frozen=True)
class Verdict:
    """What stock vLLM does, with its message or what goes wrong."""

    outcome: Outcome
    reasons: list[str]
    #: The vLLM that this is said of.
    host: str
    #: What differs on other platforms, from reading.
    cautions: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        because = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"stock {self.host} {_WORDS[self.outcome]}{because}" + "".join(f" ({c})" for c in self.cautions)


def stock_verdict(source: Source, reading: Reading, target: Target) -> Verdict:
    """What stock vLLM would make of `source`, compared with what its reader knows it to mean."""
    host = known_vllm()
    refusals = list(_refusals(source, reading, host)) or [r for r in (aux_refusal(reading.config, target),) if r]
    if refusals:
        return Verdict(Outcome.REFUSES, refusals, str(host))
    assert isinstance(reading.config, TransformerHeadConfig)
    ruins = list(_ruins(source, reading.config, reading, target))
    nested = source.config.inside("eagle_config").layers(KEY) and not source.config.layers(KEY)
    cautions = ["Model Runner V2, the default on CUDA, does not read layer ids in eagle_config"] if nested else []
    return Verdict(Outcome.RUINS if ruins else Outcome.RUNS, ruins, str(host), cautions)


def _refusals(source: Source, reading: Reading, host: KnownVllm) -> Iterator[str]:
    """The first thing it would stumble over."""
    config, top = reading.config, source.config
    stored = sorted({source.stored_names.get(n, n) for n in source.tensors} | set(source.dropped))
    speculators = top.text("speculators_model_type")
    if speculators not in ("", "eagle3", "peagle"):
        yield f"ValueError: Expected one of eagle3, peagle, ... for speculators_model_type {speculators}"
    elif source.path.is_dir() and not (source.path / "config.json").exists():
        yield "Invalid repository ID or local directory specified: it has no config.json"
    elif source.path.is_dir() and any(f.suffix != ".json" and f.parent != source.path for f in source.weights):
        yield "Cannot find any model weights: they are in a folder inside this one"
    elif not speculators and not top.get("model_type"):
        yield "Unrecognized model: should have a `model_type` key in its config.json"
    elif isinstance(config, AttentionFreeConfig):
        yield "there is no class for heads without attention"
    elif top.get("model_type") == "eagle" and not isinstance(top.get("model"), dict):
        yield "Assertion failed, model should not be None when method is eagle"
    elif (name := _architecture(top)) and not speculators and not host.resolves_draft(config.method, name):
        yield f"Model architectures ['{name}'] are not supported for now"
    else:
        yield from _refused_tensors(source, config, stored)


def _architecture(top: Described) -> str:
    inner = top.inside("model") if top.get("model_type") == "eagle" else top
    return inner.architecture


def _layers(top: Described) -> Described:
    """Where the layers are described, as vLLM looks for it."""
    if top.get("speculators_model_type") and not top.get("model_type"):  # whose config vLLM rebuilds
        return top.inside("transformer_layer_config")
    return top.inside("model") if top.get("model_type") == "eagle" else top


def _qwen3_class(top: Described) -> bool:
    """Whether vLLM takes its class with q/k norms."""
    if _layers(top).values is not top.values and top.get("model_type") is None:  # speculators' own config
        return _layers(top).get("model_type") == "qwen3"
    return _architecture(top) in ("Qwen3ForCausalLM", "Eagle3Qwen3ForCausalLM", "PeagleQwen3ForCausalLM")


def _refused_tensors(source: Source, config: Any, stored: list[str]) -> Iterator[str]:
    eagle3 = config.method == "eagle3"
    layers = _layers(source.config)
    if (said := layers.get("hidden_act", "silu")) != "silu":
        yield f"Unsupported activation: {said}. Only silu is supported for now"
        return
    if not eagle3 and layers.get("layer_types"):
        yield "AssertionError: effective_layer_idx is out of bounds for layer_types"
        return
    if source.wrapper:
        yield f"There is no module or parameter named '{source.wrapper}'"
        return
    if config.qk_norm and not _qwen3_class(source.config):
        yield "There is no module or parameter named 'layers.0.self_attn.q_norm'"
        return
    for name in stored:
        known = name.startswith(_EAGLE3_PARTS if eagle3 else _EAGLE_PARTS)
        if not known or (not eagle3 and name == "layers.0.input_layernorm.weight"):
            yield f"There is no module or parameter named '{name.rsplit('.', 1)[0]}'"
            return
    described = source.config.get("draft_vocab_size", config.vocab_size)
    if eagle3 and "d2t" in stored and described == config.vocab_size:
        yield "There is no module or parameter named 'draft_id_to_target_id' (d2t with the whole vocabulary)"
    if eagle3 and config.use_aux_hidden_state:
        listed = source.config.inside("eagle_config").layers(KEY)
        width = source.config.get("num_aux_hidden_states", len(listed) if listed else 3)
        if width != config.num_aux_hidden_states:
            yield f"AssertionError: fc is built for {width} aux hidden states, and has {config.num_aux_hidden_states}"


def _ruins(source: Source, config: TransformerHeadConfig, reading: Reading, target: Target) -> Iterator[str]:
    top, described = source.config, _layers(source.config)
    yield from _wrong_numbers(described, config)
    yield from _wrong_attention(described, config, target)
    if config.fc_bias:
        yield "fc.bias is dropped"
    qkv = config.qkv_bias and not (described.get("attention_bias") or described.get("qkv_bias"))
    if qkv:
        yield "biases of q, k and v are dropped"
    if (described.get("attention_bias") or described.get("bias")) and not config.o_bias:
        yield "biases of the attention are created and stay uninitialised"
    if isinstance(config, Eagle3Config):
        if _qwen3_class(top) and not config.qk_norm:
            yield "q and k are normed, which the head was not trained with"
        yield from _ruined_eagle3(top, config, target)
    dropped = [n for n, why in reading.dropped.items() if why == LEFT_OUT]
    if dropped:
        yield f"{', '.join(dropped)} would be used"


def _wrong_numbers(described: Described, config: TransformerHeadConfig) -> Iterator[str]:
    layers = described.number("num_hidden_layers") or 1
    if layers > config.num_hidden_layers:
        yield f"{layers - config.num_hidden_layers} of {layers} layers stay uninitialised"
    nested = described.inside("rope_parameters").number("rope_theta", float)
    default = 1e6 if described.get("model_type") == "mixtral" else DEFAULT_THETA
    theta = nested or described.number("rope_theta", float) or default
    trained = (config.rope_parameters or {}).get("rope_theta")
    if trained is not None and theta != trained:
        yield f"RoPE base {theta:g} instead of {trained:g}"


def _wrong_attention(described: Described, config: TransformerHeadConfig, target: Target) -> Iterator[str]:
    kinds = described.get("layer_types", ())
    theirs = described.get("sliding_window") if kinds and kinds[0] == "sliding_attention" else target.config.window
    if theirs != config.sliding_window and (theirs or 0) != (config.sliding_window or 0):
        yield f"attention within {theirs} tokens instead of {config.sliding_window or 'all'}"
    rope = described.inside("rope_parameters").values or described.inside("rope_scaling").values
    says = rope.get("partial_rotary_factor", described.get("partial_rotary_factor"))
    ours = (config.rope_parameters or {}).get("partial_rotary_factor", 1)
    if says is not None and says != ours:
        yield f"{says:g} of each attention head rotated instead of {ours:g}"
    if described.get("logit_scale", 1) != config.logit_scale:
        yield f"logits scaled by {described.get('logit_scale')}"


def _ruined_eagle3(top: Described, config: Eagle3Config, target: Target) -> Iterator[str]:
    nested = top.inside("eagle_config")
    if config.use_aux_hidden_state:
        used = top.layers(KEY) or nested.layers(KEY) or default_layers(target.num_layers)
        if sorted(set(used)) != config.eagle_aux_hidden_state_layer_ids:
            yield f"layers {sorted(set(used))} of the target instead of {config.eagle_aux_hidden_state_layer_ids}"
    speculators = top.text("speculators_model_type")
    before = top.get("norm_before_residual", nested.get("norm_before_residual", speculators == "eagle3"))
    if bool(before) != config.norm_before_residual:
        yield f"norm_before_residual {bool(before)} instead of {config.norm_before_residual}"
    if bool(top.get("norm_output", False)) != (config.feedback == "post_norm"):
        yield "the stream behind the final norm is fed back instead of the one before it"
    if not config.output_norm or not config.input_norm or not config.hidden_norm:
        yield "norms that the head does not have are applied"
    if config.norm_before_fc and not (top.get("norm_before_fc") or nested.get("norm_before_fc")):
        yield "input_norm is dropped"
    if config.parallel_drafting:
        yield "mask_hidden is skipped unless parallel_drafting is set in the serve command"
