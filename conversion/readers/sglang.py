"""EAGLE-1/2 under sglang's names (`lmsys/sglang-EAGLE-*`) and BaldEagle's, which writes them too.

SafeAILab's tensors with `architectures: [LlamaForCausalLMEagle]` (or `Qwen2ForCausalLMEagle`). A hot-token
map beside the weights (FR-Spec, sglang's `--speculative-token-map`) makes the vocabulary a reduced one.
BaldEagle leaves the embedding out. Its EAGLE-3 class has the name that SpecForge's has; where nothing else tells
them apart, both readings are the same.
"""

from __future__ import annotations

from ...targets.target import Target
from ..decoder import if_named
from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..lm_head import LmHead
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import OWN_CLASSES, TRANSFORMERS
from ..source import Source
from ..windows import Windows
from .safeailab import eagle_layout

_ARCHITECTURES = ("LlamaForCausalLMEagle", "Qwen2ForCausalLMEagle", "MixtralForCausalLMEagle")
_EAGLE3 = (*_ARCHITECTURES, "LlamaForCausalLMEagle3")
#: Keys by which other producers with an EAGLE-3 class of that name are known.
_SPECFORGE = {
    "eagle_config", "norm_output", "fc_norm", "target_model_type", "target_hidden_size", "_torchspec_version",
}  # fmt: skip


def recognise(source: Source) -> Evidence | None:
    points = eagle_layout(source)
    if points and source.config.architecture in _ARCHITECTURES:
        return Evidence([*points, f"architectures is {source.config.architecture}"], 3, names_trainer=False)
    return None


def recognise_baldeagle(source: Source) -> Evidence | None:
    found = recognise(source)
    if found and source.has("fc.bias") and not source.has("embed_tokens.weight"):
        return Evidence([*found.points, "fc.bias, and no copy of the embedding"], strength=3)
    return None


def recognise_baldeagle3(source: Source) -> Evidence | None:
    if not source.has("fc.weight", "midlayer.self_attn.q_proj.weight") or source.config.architecture not in _EAGLE3:
        return None
    if _SPECFORGE & set(source.config.values):
        return None
    points = ["tensors midlayer.*", f"architectures is {source.config.architecture}"]
    if (source.path / "training_args.bin").exists():  # SpecForge has a trainer of its own
        return Evidence([*points, "training_args.bin of Hugging Face's trainer"], strength=3)
    return Evidence(points)


def read(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle(source, target, options, EagleMeaning(**if_named(options, OWN_CLASSES)))


def read_baldeagle(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle(source, target, options, EagleMeaning(TRANSFORMERS, Windows.IGNORED, flagged_biases=True))


def read3(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle3(
        source,
        target,
        options,
        Eagle3Meaning(TRANSFORMERS, Windows.IGNORED, flagged_biases=True, residual_flag=False, lm_head=LmHead.TIED),
    )


READERS = (
    Reader("sglang-eagle", "EAGLE-1/2 under sglang's names", recognise, read, EAGLE_OPTIONS),
    Reader(
        "baldeagle", "BaldEagle EAGLE-1 (sglang's names, fc.bias)", recognise_baldeagle, read_baldeagle, EAGLE_OPTIONS
    ),
    Reader("baldeagle-eagle3", "BaldEagle EAGLE-3 (midlayer)", recognise_baldeagle3, read3, EAGLE3_OPTIONS),
)
