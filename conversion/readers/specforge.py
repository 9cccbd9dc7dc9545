"""SpecForge EAGLE-3: SafeAILab's tensors, with its own words for layers and norms.

Layer ids stand in `eagle_config` and count outputs of layers. `norm_output` says whether the norm before the
lm_head is applied, which is saved in either case; the stream in front of it is fed back either way, where
vLLM's flag of that name feeds back the one behind it. `d2t` (zeros) and `t2d` (ones) are always there, even
for the whole vocabulary. Its P-EAGLE (`PEagleDraftModel`) turns by the RoPE base alone, whatever scaling its config names.
"""

from __future__ import annotations

from dataclasses import replace

from ...targets.target import Target
from ..described import Described
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import OWN_CLASSES
from ..source import Source
from ..windows import Windows

_MEANING = Eagle3Meaning(OWN_CLASSES, Windows.IGNORED, convention="output", norm_output="norm", residual_flag=False)


def recognise(source: Source) -> Evidence | None:
    if not source.has("midlayer.self_attn.q_proj.weight") or source.config.get("_torchspec_version"):
        return None
    if source.config.architecture == "LlamaForCausalLMEagle3":
        return Evidence(["tensors midlayer.*", "architectures is LlamaForCausalLMEagle3"], strength=3)
    return None


def recognise_parallel(source: Source) -> Evidence | None:
    if source.config.architecture == "PEagleDraftModel" and source.has("mask_hidden"):
        return Evidence(["tensors layers.0.* and mask_hidden", "architectures is PEagleDraftModel"], strength=3)
    return None


def read_parallel(source: Source, target: Target, options: Options) -> Reading:
    plain = dict(source.config.values)
    nested = plain.pop("rope_parameters", None) or {}
    scaling = plain.pop("rope_scaling", None) or nested
    if isinstance(nested, dict) and "rope_theta" in nested:
        plain["rope_theta"] = nested["rope_theta"]
    notes = source.notes
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) != "default":
        notes = (*notes, "config.json names a RoPE scaling, which SpecForge's P-EAGLE trains without")
    source = replace(source, config=Described(plain, read=source.config.read), notes=notes)
    return read_eagle3(source, target, options, replace(_MEANING, residual_flag=True))


def read(source: Source, target: Target, options: Options) -> Reading:
    if source.config.flag("norm_output", True):
        return read_eagle3(source, target, options, _MEANING)
    unused = {n: t for n, t in source.tensors.items() if n != "norm.weight"}
    stored = source.stored_names.get("norm.weight", "norm.weight")
    dropped = {**source.dropped, stored: "norm_output is false: saved, but never applied"}
    if len(unused) < len(source.tensors):
        source = replace(source, tensors=unused, dropped=dropped)
    return read_eagle3(source, target, options, replace(_MEANING, optional_norms=("norm",)))


READERS = (
    Reader("specforge", "SpecForge EAGLE-3 (LlamaForCausalLMEagle3, midlayer)", recognise, read, EAGLE3_OPTIONS),
    Reader(
        "specforge-peagle", "SpecForge P-EAGLE (PEagleDraftModel)", recognise_parallel, read_parallel, EAGLE3_OPTIONS
    ),
)
