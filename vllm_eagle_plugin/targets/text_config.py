"""What a target's config.json says of its language model, whatever shape that file has.

Configurations that transformers knows are read by its classes, which know the defaults. All others (code on
the hub, models that only vLLM knows, Mistral's params.json) are read as the JSON they are: nothing is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ..errors import HeadError

#: Keys under which multimodal configs keep their language model's.
_INNER = re.compile(r"^(text|llm|language|lm|thinker|decoder|language_model|text_model|text_decoder)(_config|_cfg)?$")
#: The same fact under the names of different model families, commonest first.
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"),
    "vocab_size": ("padded_vocab_size", "vocab_size", "n_vocab"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    "num_key_value_heads": ("num_key_value_heads", "n_head_kv", "n_kv_heads", "num_kv_heads", "multi_query_group_num", "num_attention_groups"),
    "head_dim": ("head_dim", "hidden_size_per_head", "kv_channels"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "hidden_dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length"),
}  # fmt: skip
_NEEDED = ("hidden_size", "vocab_size", "num_hidden_layers")


@dataclass(frozen=True)
class TextConfig:
    """A language model's facts; None where nothing is said, or where its layers differ."""

    model_type: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int | None = None
    rms_norm_eps: float | None = None
    #: Sliding window that all layers have, which vLLM gives every attention layer without one of its own.
    window: int | None = None
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    #: Whether the lm_head is the embedding, as the language model's part says (which servers go by) and as all
    #: parts together do; None where nothing is said.
    tied: bool | None = None
    tied_anywhere: bool | None = None
    #: Factor on embeddings (Gemma: sqrt(H)); factor on logits, and the cap c of `c * tanh(logits / c)`.
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    dtype: torch.dtype | None = None
    quantisation: str | None = None


def read_text_config(folder: Path, name: str) -> TextConfig:
    """The language model described in `folder`'s config.json (or params.json).

    Raises:
        HeadError: there is none, or it describes no language model.
    """
    raw = read_raw(folder, name)
    whole = known_config(folder, raw, name)
    inner: Any = raw if whole is None else whole.get_text_config(decoder=True)
    get = _reader(_innermost(inner))
    facts: dict[str, Any] = {
        key: next((v for n in names if _whole(v := get(n))), None) for key, names in _NAMES.items()
    }
    outer = _reader(raw)
    facts["vocab_size"] = facts["vocab_size"] or next((v for n in _NAMES["vocab_size"] if _whole(v := outer(n))), None)
    for key in _NEEDED:
        if facts[key] is None:
            raise HeadError(f"the target's config.json has no {key}", "A language model was expected", "Check --target")
    return TextConfig(
        model_type=str(get("model_type") or raw.get("model_type") or ""),
        architecture=_architecture(raw),
        rms_norm_eps=next((v for n in ("rms_norm_eps", "norm_eps", "layer_norm_eps") if _number(v := get(n))), None),
        window=_window(get),
        rope_parameters=_rope(get),
        tied=_tied(get, outer),
        tied_anywhere=_tied(outer, get) or _tied(get, outer),
        logit_softcap=next((v for n in ("final_logit_softcapping",) if _number(v := get(n))), None),
        dtype=_dtype(get, outer),
        quantisation=_quantisation(raw),
        **_scales(get, facts["hidden_size"]),
        **facts,
    )


def known_config(folder: Path, raw: Mapping[str, Any], name: str) -> PretrainedConfig | None:
    """The config as transformers' own class reads it, by its model_type or by its architecture; None if it has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        if raw.get("model_type") in CONFIG_MAPPING:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = model_class(_architecture(raw))
        if model is None:
            return None
        own = model.config_class
        return own.from_dict({**raw, "model_type": own.model_type})  # by which weights are renamed and stacked
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise HeadError(
            f"the target {name} has no usable config.json: {' '.join(str(error).split())}",
            "A Hugging Face model folder was expected",
            "Check --target",
        ) from None


def model_class(architecture: str) -> type[PreTrainedModel] | None:
    """The class of transformers by this name; None where it has none."""
    found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def read_raw(folder: Path, name: str) -> dict[str, Any]:
    """The object in config.json, or in Mistral's params.json."""
    file = next((f for f in (folder / "config.json", folder / "params.json") if f.is_file()), folder / "config.json")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"it holds a {type(raw).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise HeadError(
            f"the target {name} has no usable config.json: {' '.join(str(error).split())[:200]}",
            "A Hugging Face model folder was expected",
            "Check --target",
        ) from None
    if file.name == "params.json":  # Mistral's own format
        raw = {"model_type": "mistral_params", "tie_word_embeddings": bool(raw.get("tied_embeddings")), **raw}
    return raw


def _innermost(config: Any) -> Any:
    """The config of the language model in one of several parts: descend while a part is a language model's."""
    for key, value in list(_items(config)):
        if _INNER.match(key) and _fits(value):
            return _innermost(value)
    return config


def _fits(value: Any) -> bool:
    if not isinstance(value, Mapping | PretrainedConfig):
        return False
    get = _reader(value)
    described = all(any(_whole(get(n)) for n in _NAMES[key]) for key in ("hidden_size", "num_hidden_layers"))
    return described or any(_INNER.match(key) and _fits(inner) for key, inner in _items(value))


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    yield from (config.items() if isinstance(config, Mapping) else vars(config).items())


def _reader(config: Any) -> Callable[[str], Any]:
    if isinstance(config, Mapping):
        return config.get

    def get(key: str) -> Any:
        try:
            return getattr(config, key, None)
        except RuntimeError:  # layers differ, and the config says so this way
            return None

    return get


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _architecture(raw: Mapping[str, Any]) -> str:
    listed = raw.get("architectures")
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""


def _window(get: Callable[[str], Any]) -> int | None:
    kinds, window = get("layer_types"), get("sliding_window")
    everywhere = not isinstance(kinds, list) or all(kind == "sliding_attention" for kind in kinds)
    return window if _whole(window) and everywhere else None


def _rope(get: Callable[[str], Any]) -> dict[str, Any]:
    rope = get("rope_parameters")
    if isinstance(rope, Mapping):
        return dict(rope)
    scaling = get("rope_scaling")
    base = {"rope_theta": float(theta)} if _number(theta := get("rope_theta")) else {}
    return {**base, **(dict(scaling) if isinstance(scaling, Mapping) else {})}


def _tied(get: Callable[[str], Any], outer: Callable[[str], Any]) -> bool | None:
    return next((v for ask in (get, outer) if isinstance(v := ask("tie_word_embeddings"), bool)), None)


def _scales(get: Callable[[str], Any], width: int | None) -> dict[str, Any]:
    """Factors on embeddings and logits, which families call by different names."""
    embed = next((v for n in ("embedding_multiplier", "scale_emb") if _number(v := get(n))), 1.0)
    if "gemma" in str(get("model_type")):
        embed = float(width or 1) ** 0.5
    logit = next((v for n in ("logit_scale", "lm_head_multiplier") if _number(v := get(n))), 1.0)
    for divisor in ("logits_scaling", "logits_mup_width_multiplier"):
        logit = 1 / value if _number(value := get(divisor)) else logit
    if _number(base := get("dim_model_base")) and width:  # MiniCPM
        logit = base / width
    return {"embed_scale": float(embed), "logit_scale": float(logit)}


def _dtype(*asked: Callable[[str], Any]) -> torch.dtype | None:
    for get in asked:
        for key in ("dtype", "torch_dtype"):
            value = get(key)
            value = getattr(torch, value, None) if isinstance(value, str) else value
            if isinstance(value, torch.dtype):
                return value
    return None


def _quantisation(raw: Mapping[str, Any]) -> str | None:
    described = raw.get("quantization_config")
    return str(described.get("quant_method", "unknown")) if isinstance(described, Mapping) else None
