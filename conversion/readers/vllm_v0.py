"""The layout of old vLLM (V0): the head's config inside a wrapper of model_type `eagle`.

SafeAILab's tensors and a copied lm_head; `eagle_fc_bias` inside or outside the inner config; `token_map` of
absolute ids; `enorm` and `hnorm` (`add_para_norm`); the final norm where `skip_output_norm` is false, and then
what is behind it is fed back. The layer's input norm counts only where `skip_prenorm` is false: V0 kept the
weights of a norm that it skipped.
"""

from __future__ import annotations

from dataclasses import replace

from ...targets.target import Target
from ..decoder import if_named
from ..described import Described
from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..missing import demand
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..renaming import renamed
from ..rope import OWN_CLASSES
from ..source import Source
from .safeailab import eagle_layout

_PRENORM = "layers.0.input_layernorm.weight"
_OWN = {"enorm.weight": "embed_norm.weight", "hnorm.weight": "hidden_norm.weight"}


def recognise(source: Source) -> Evidence | None:
    points = eagle_layout(source)
    if not points:
        return None
    marks = []
    if source.config.get("model_type") == "eagle" and isinstance(source.config.get("model"), dict):
        marks.append("config.json wraps another under `model`, with model_type eagle")
    marks += [f"tensor {name}" for name in (*_OWN, "token_map") if source.has(name)]
    return Evidence([*points, *marks], strength=3, names_trainer=False) if marks else None


def read(source: Source, target: Target, options: Options) -> Reading:
    described = source.config.inside("model")
    _demand_all(source, described)
    cut = source.config.number("truncated_vocab_size") or described.number("truncated_vocab_size")
    if cut not in (None, target.vocab_size) and options.token_map is None and not source.side:
        demand(source, ["token_map"], f"config.json says truncated_vocab_size is {cut}")
    if described.flag("skip_prenorm", True) and source.has(_PRENORM):
        stored = source.stored_names.get(_PRENORM, _PRENORM)
        kept = {name: tensor for name, tensor in source.tensors.items() if name != _PRENORM}
        dropped = {**source.dropped, stored: "skip_prenorm: saved, but never applied"}
        source = replace(source, tensors=kept, dropped=dropped)
    meaning = EagleMeaning(**if_named(options, OWN_CLASSES), feedback="post_norm")
    return read_eagle(renamed(source, _OWN), target, options, meaning, described)


def _demand_all(source: Source, described: Described) -> None:
    """What the flags of V0's config ask for; its script wrote some of them outside the inner config."""
    for flag, value, names in (
        ("eagle_fc_bias", True, ["fc.bias"]),
        ("add_para_norm", True, list(_OWN)),
        ("skip_prenorm", False, [_PRENORM]),
        ("skip_output_norm", False, ["norm.weight"]),
    ):
        if source.config.flag(flag, described.flag(flag)) is value:
            demand(source, names, f"config.json says {flag} is {str(value).lower()}")


READERS = (Reader("vllm-v0", "vLLM V0's eagle wrapper config", recognise, read, EAGLE_OPTIONS),)
