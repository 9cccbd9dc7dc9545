"""AngelSlim EAGLE-3 (`AngelSlim/*_eagle3`): SafeAILab's tensors, RoPE trained with a base of 10000.

Its configs carry the target's rope_theta, which its training code reads for multimodal RoPE alone. Embeddings
are left out when it saves.
"""

from __future__ import annotations

from dataclasses import replace

from ...targets.target import Target
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import OWN_CLASSES
from ..source import Source
from ..windows import Windows


def recognise(source: Source) -> Evidence | None:
    if source.has("midlayer.self_attn.q_proj.weight") and source.config.architecture == "Eagle3LlamaForCausalLM":
        return Evidence(["tensors midlayer.*", "architectures is Eagle3LlamaForCausalLM"], strength=3)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    rope = replace(OWN_CLASSES, theta=None if _multimodal(source) else 10000.0)
    meaning = Eagle3Meaning(rope, Windows.IGNORED, residual_flag=False, norm_output="unread")
    return read_eagle3(source, target, options, meaning)


def _multimodal(source: Source) -> bool:
    kinds = [source.config.inside(key) for key in ("rope_scaling", "rope_parameters")]
    return any("mrope" in (k.text("type"), k.text("rope_type")) or k.flag("mrope_interleaved") for k in kinds)


READERS = (Reader("angelslim", "AngelSlim EAGLE-3 (Eagle3LlamaForCausalLM)", recognise, read, EAGLE3_OPTIONS),)
