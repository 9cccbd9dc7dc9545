"""EAGLE-1/2 under sglang's names (`lmsys/sglang-EAGLE-*`) and BaldEagle's, which writes them too.

SafeAILab's tensors with `architectures: [LlamaForCausalLMEagle]` (or `Qwen2ForCausalLMEagle`). A hot-token
map beside the weights (FR-Spec, sglang's `--speculative-token-map`) makes the vocabulary a reduced one.
BaldEagle always has `fc.bias`.
"""

from __future__ import annotations

from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..source import Source
from ..target import Target
from .safeailab import eagle_layout

_ARCHITECTURES = ("LlamaForCausalLMEagle", "Qwen2ForCausalLMEagle", "MixtralForCausalLMEagle")


def recognise(source: Source) -> Evidence | None:
    points = eagle_layout(source)
    if points and source.config.architecture in _ARCHITECTURES:
        return Evidence([*points, f"architectures is {source.config.architecture}"], strength=3)
    return None


def recognise_baldeagle(source: Source) -> Evidence | None:
    found = recognise(source)
    if found and source.has("fc.bias") and not source.has("embed_tokens.weight"):
        return Evidence([*found.points, "fc.bias, and no copy of the embedding"], strength=3)
    return None


def recognise_baldeagle3(source: Source) -> Evidence | None:
    if source.has("fc.weight", "midlayer.self_attn.q_proj.weight") and source.config.architecture in _ARCHITECTURES:
        return Evidence(["tensors midlayer.*", f"architectures is {source.config.architecture}"], strength=3)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle(source, target, options, EagleMeaning())


def read3(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle3(source, target, options, Eagle3Meaning())


READERS = (
    Reader("sglang-eagle", "EAGLE-1/2 under sglang's names", recognise, read, EAGLE_OPTIONS),
    Reader("baldeagle", "BaldEagle EAGLE-1 (sglang's names, fc.bias)", recognise_baldeagle, read, EAGLE_OPTIONS),
    Reader("baldeagle-eagle3", "BaldEagle EAGLE-3 (midlayer)", recognise_baldeagle3, read3, EAGLE3_OPTIONS),
)
