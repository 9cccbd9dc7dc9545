"""Draft heads of other kinds: recognised, so that their owners learn what to use instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import HeadError
from .source import Source


@dataclass(frozen=True)
class Foreign:
    """A kind of head that this converter does not read."""

    name: str
    recognise: Callable[[Source], bool]
    instead: str


def _any_name(pattern: str) -> Callable[[Source], bool]:
    compiled = re.compile(pattern)
    return lambda source: any(compiled.search(name) for name in source.tensors)


def _config(key: str, *values: str) -> Callable[[Source], bool]:
    return lambda source: str(source.config.get(key, "")).lower() in values


def _either(*tests: Callable[[Source], bool]) -> Callable[[Source], bool]:
    return lambda source: any(test(source) for test in tests)


def _architecture(part: str) -> Callable[[Source], bool]:
    return lambda source: part in source.config.architecture


def _described(outer: str, key: str, *values: str) -> Callable[[Source], bool]:
    return lambda source: str(source.config.inside(outer).get(key, "")).lower() in values


#: Tensors that fuse another model's hidden state with something, in any head's layout.
_FUSION = re.compile(
    r"(^|\.)(fc|fc_norm|fusion_fc|input_projection|eagle_linear|img_fc|mask_hidden|hidden_norm|hidden_layernorm|enorm"
    r"|eh_proj|input_norm1|prefix_gru|projection_weights|d2t)(\.|$)"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings|wte|embed_in|word_embeddings)\.weight$")
_ATTENTION = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.(self_attn|attention|attn|self_attention|mixer|linear_attn)\.")
_FINAL_NORM = re.compile(r"(^|\.)(norm|ln_f|final_layernorm|final_layer_norm|final_norm)\.weight$")


def _whole_model(source: Source) -> bool:
    """An embedding, layers with attention, a final norm, and nothing that reads the states of another model."""
    names = [source.stored_names.get(n, n) for n in source.tensors]
    q, o = (source.shape(f"layers.0.self_attn.{name}_proj.weight") for name in "qo")
    widened = len(q) == len(o) == 2 and q[1] == 2 * o[0]
    has_all = all(any(part.search(name) for name in names) for part in (_EMBEDDING, _ATTENTION, _FINAL_NORM))
    return (
        has_all
        and not widened
        and not any(_FUSION.search(n) for n in names)
        and "Eagle" not in source.config.architecture
    )


_MISTRAL = (
    "stock vLLM runs it as it is, beside a target in the same format: vllm serve TARGET --config-format mistral "
    "--load-format mistral --tokenizer-mode mistral --speculative-config "
    '\'{"method": "eagle", "model": HEAD, "num_speculative_tokens": 3}\''
)
FOREIGN = (
    Foreign(
        "an EAGLE head in Mistral's own format (params.json, eagle_linear)",
        _any_name(r"^eagle_linear\.weight$|^eagle_linear\.qscale"),
        _MISTRAL,
    ),
    Foreign(
        "a ViSpec head (EAGLE-1 with an image adaptor)",
        _any_name(r"(^|\.)(imadpt|img_fc)\."),
        "only its authors' own code runs it; train an EAGLE-3 head for the text model of the target",
    ),
    Foreign(
        "MiniCPM's own EAGLE head",
        _either(_any_name(r"(^|\.)(eagle_layers\.|input_norm[12]\.weight$)"), _architecture("MiniCPMEagle"), _architecture("EagleMiniCPM")),
        'stock vLLM runs its own layout of it beside a MiniCPM target: {"method": "eagle"} (EagleMiniCPMForCausalLM); '
        "this converter does not write it",
    ),
    Foreign(
        "a Gemma-4 EAGLE-3 head of DeepSpec",
        _either(_architecture("Gemma4Eagle3Model"), _any_name(r"^(midlayer|layers\.0)\.pre_feedforward_layernorm\.weight$")),
        "vLLM has no class with its norms of Gemma; only DeepSpec's own code runs it",
    ),
    Foreign(
        "Domino (DFlash with a causal correction of its drafts)",
        _either(_described("dflash_config", "projector_type", "domino", "causal_v5"), _architecture("Domino"), _any_name(r"(^|\.)prefix_gru\.")),
        "no released vLLM runs it (vllm-project/vllm#46707 asks for it); train it as DFlash, "
        'which vLLM runs ({"method": "dflash"}), or an EAGLE-3 head',
    ),
    Foreign(
        "EagleMedusa (parallel draft heads on EAGLE-3)",
        _any_name(r"(^|\.)parallel_draft_heads\."),
        "vLLM cannot run it; export it with parallel_draft_step 1",
    ),
    Foreign(
        "Medusa",
        _either(_config("model_type", "medusa"), _any_name(r"^(medusa_head\.)?\d+\.\d+\.linear\.weight$|^blocks\.\d+\.layers\.\d+\.weight$")),
        'vLLM runs it natively: {"method": "medusa"}, with medusa_fc_bias true in its config if it has linear.bias',
    ),
    Foreign(
        "Hydra",
        _any_name(r"^hydra_(mlp|lm_head|head)|^prefix_embeding_layer|^prefix_embedding_layer"),
        "vLLM has no Hydra heads; train an EAGLE-3 head for the target",
    ),
    Foreign(
        "MLP-speculator",
        _either(_config("model_type", "mlp_speculator"), _any_name(r"^(speculator\.)?(emb|proj|ln)\.\d+\.weight$")),
        "vLLM 0.32 has no way to run it; train an EAGLE-3 head for the target",
    ),
    Foreign(
        "DFlash",
        _either(_config("speculators_model_type", "dflash", "dflash2"), _architecture("DFlash")),
        'vLLM runs it natively: {"method": "dflash"}',
    ),
    Foreign(
        "DSpark",
        _either(_config("speculators_model_type", "dspark"), _architecture("DSpark")),
        'vLLM runs it natively: {"method": "dspark"}',
    ),
    Foreign(
        "a multi-token-prediction (MTP) module",
        _either(_any_name(r"(^|\.)eh_proj\.weight$|^mtp\."), _config("model_type", "deepseek_mtp", "qwen3_next_mtp")),
        'vLLM runs it natively with its target: {"method": "mtp"}',
    ),
    Foreign(
        "an EAGLE head with DeepSeek's MLA attention",
        _any_name(r"(midlayer|layers\.\d+)\.self_attn\.(q_a_proj|kv_a_proj_with_mqa)\.weight$"),
        "stock vLLM runs its own layout of it (Eagle3DeepseekV2ForCausalLM); this converter does not write it",
    ),
    Foreign(
        "a whole language model, such as a target, and not a head that drafts for one",
        _whole_model,
        "pass the folder of the trained head. A small model with its target's vocabulary drafts in vLLM without "
        'conversion: {"method": "draft_model"}',
    ),
)  # fmt: skip


def refuse_foreign(source: Source) -> None:
    """Raise `HeadError` for a head of another kind, saying what to use instead."""
    for kind in FOREIGN:
        if kind.recognise(source):
            raise HeadError(
                f"{source.path} is {kind.name}", "An EAGLE-style head was expected", f"Instead: {kind.instead}"
            )
