"""NVIDIA NeMo Automodel: EAGLE-1/2 (`LlamaEagleDraftModel`) and EAGLE-3 (`LlamaEagle3DraftModel`).

EAGLE-1 there has an input norm and a final norm, feeds back what is behind the latter, and its config is
the target's with `draft_num_hidden_layers`. EAGLE-3 stands under `model.`; early versions keep the draft
vocabulary only in `eagle_meta.pt`, as absolute ids.
"""

from __future__ import annotations

from ...targets.target import Target
from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..lm_head import LmHead
from ..missing import demand
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import Nested, Partial, RopeMeaning
from ..source import Source
from ..windows import Windows
from .safeailab import eagle_layout

#: Its Llama layers take RoPE from the top of the object, and have no window; both configs are the target's.
_ROPE = RopeMeaning(nested=Nested.OVERLOOKED, partial=Partial.SCALED_ALONE)
_NORMS = ("layers.0.input_layernorm.weight", "norm.weight")


def recognise1(source: Source) -> Evidence | None:
    points = eagle_layout(source)
    if points and source.config.architecture == "LlamaEagleDraftModel":
        return Evidence([*points, "architectures is LlamaEagleDraftModel"], strength=3)
    return Evidence([*points, "an input norm and a final norm"]) if points and source.has(*_NORMS) else None


def recognise3(source: Source) -> Evidence | None:
    architecture = source.config.architecture
    if architecture == "LlamaEagle3DraftModel" and source.has("layers.0.self_attn.q_proj.weight"):
        return Evidence(["tensors layers.0.*", f"architectures is {architecture}"], strength=3)
    return None


def read1(source: Source, target: Target, options: Options) -> Reading:
    demand(source, _NORMS, "LlamaEagleDraftModel has an input norm and a final norm")
    return read_eagle(source, target, options, EagleMeaning(_ROPE, Windows.IGNORED, feedback="post_norm"))


def read3(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle3(
        source,
        target,
        options,
        Eagle3Meaning(_ROPE, Windows.IGNORED, flagged_biases=True, residual_flag=False, lm_head=LmHead.TIED),
    )


READERS = (
    Reader("automodel-eagle", "NeMo Automodel EAGLE-1/2 (input and final norm)", recognise1, read1, EAGLE_OPTIONS),
    Reader("automodel-eagle3", "NeMo Automodel EAGLE-3 (model. names)", recognise3, read3, EAGLE3_OPTIONS),
)
