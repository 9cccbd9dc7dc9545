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


FOREIGN = (
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
        "a quantised head",
        _any_name(r"\.(weight_scale|weight_scale_inv|weight_packed|qweight|qzeros|scales|input_scale|weight_scale_2)$|SCB$"),
        "export it before quantisation: heads are small, and vLLM's --quantization can quantise them when loading",
    ),
)  # fmt: skip


def refuse_foreign(source: Source) -> None:
    """Raise `HeadError` for a head of another kind, saying what to use instead."""
    for kind in FOREIGN:
        if kind.recognise(source):
            raise HeadError(
                f"{source.path} is {kind.name}", "An EAGLE-style head was expected", f"Instead: {kind.instead}"
            )
