"""Heads of vLLM's speculators library: `eagle` (0.1 and 0.2, removed since), `eagle3` and `peagle`.

The layers are described in `transformer_layer_config`. `norm_before_residual` is false where it is missing,
which stock vLLM reads as true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import HeadError
from ...targets.target import Target
from ..described import Described
from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..missing import demand
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..renaming import renamed
from ..rope import TRANSFORMERS, Nested
from ..source import Source
from ..windows import Windows

_EAGLE_NAMES = {
    "fusion_fc.weight": "fc.weight",
    "fusion_fc.bias": "fc.bias",
    "embedding_layernorm.weight": "embed_norm.weight",
    "pre_lm_head_layernorm.weight": "norm.weight",
}
_NORMS = ("embedding_layernorm.weight", "transformer.input_layernorm.weight", "pre_lm_head_layernorm.weight")

_MEANING = Eagle3Meaning(replace(TRANSFORMERS, nested=Nested.SLIDING), Windows.BY_LAYER, flagged_biases=True)


def _recogniser(kind: str, *needs: str) -> Callable[[Source], Evidence | None]:
    def recognise(source: Source) -> Evidence | None:
        says = source.config.get("speculators_model_type")
        if says == kind:
            version = source.config.get("speculators_version", "unknown")
            return Evidence([f"speculators_model_type is {kind}", f"speculators_version is {version}"], strength=3)
        if says is None and needs and source.has(*needs):
            return Evidence([f"tensors {', '.join(needs)}"], strength=3)
        return None

    return recognise


def _layers(source: Source) -> Described:
    return source.config.inside("transformer_layer_config")


def _eagle_name(name: str) -> str:
    if name.startswith("transformer."):
        return f"layers.0.{name.removeprefix('transformer.')}"
    return _EAGLE_NAMES.get(name, name)


def read_eagle1(source: Source, target: Target, options: Options) -> Reading:
    if source.config.flag("fusion_bias"):
        demand(source, ["fusion_fc.bias"], "config.json says fusion_bias is true")
    if source.config.flag("layernorms"):
        demand(source, _NORMS, "config.json says layernorms is true")
    meaning = EagleMeaning(TRANSFORMERS, Windows.IGNORED)
    return read_eagle(renamed(source, _eagle_name), target, options, meaning, _layers(source))


def read3(source: Source, target: Target, options: Options) -> Reading:
    if source.config.get("speculators_model_type") == "peagle":
        demand(source, ["mask_hidden"], "speculators_model_type is peagle")
    _check_class(source)
    return read_eagle3(source, target, options, _MEANING, _layers(source))


def _check_class(source: Source) -> None:
    """Its Qwen3 layers norm q and k, its Llama layers do not and would drop such norms."""
    says, norms = _layers(source).text("model_type"), source.has("layers.0.self_attn.q_norm.weight")
    if says == "qwen3" and not norms:
        demand(source, ["layers.0.self_attn.q_norm.weight"], "transformer_layer_config says model_type is qwen3")
    elif says == "llama" and norms:
        raise HeadError(
            "transformer_layer_config says model_type is llama, and the layers have q_norm",
            "Layers of Llama's kind have no norms on q and k, those of qwen3 have",
            "Correct model_type to qwen3 if it was trained with them",
        )


READERS = (
    Reader("speculators-eagle", "speculators 0.1/0.2 EAGLE-1 (fusion_fc, transformer)",
           _recogniser("eagle", "fusion_fc.weight"), read_eagle1, EAGLE_OPTIONS),
    Reader("speculators-eagle3", "speculators EAGLE-3", _recogniser("eagle3"), read3, EAGLE3_OPTIONS),
    Reader("speculators-peagle", "speculators P-EAGLE (mask_hidden)", _recogniser("peagle"), read3, EAGLE3_OPTIONS),
)  # fmt: skip
