"""SpecForge EAGLE-3: SafeAILab's tensors, with its own words for layers and norms.

Layer ids stand in `eagle_config` and count outputs of layers. `norm_output` says whether there is a norm
before the lm_head; the stream in front of it is fed back either way, where vLLM's flag of that name feeds
back the one behind it. `d2t` (zeros) and `t2d` (ones) are always there, even for the whole vocabulary.
"""

from __future__ import annotations

from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..source import Source
from ..target import Target


def recognise(source: Source) -> Evidence | None:
    if not source.has("midlayer.self_attn.q_proj.weight"):
        return None
    if source.config.architecture == "LlamaForCausalLMEagle3":
        return Evidence(["tensors midlayer.*", "architectures is LlamaForCausalLMEagle3"], strength=3)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    optional = () if source.config.flag("norm_output", True) else ("norm",)
    meaning = Eagle3Meaning(convention="output", norm_output="norm", optional_norms=optional)
    return read_eagle3(source, target, options, meaning)


READERS = (
    Reader("specforge", "SpecForge EAGLE-3 (LlamaForCausalLMEagle3, midlayer)", recognise, read, EAGLE3_OPTIONS),
)
