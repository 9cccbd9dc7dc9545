"""EAGLE-3 heads written for stock vLLM (`layers.0.*`, layer ids at the top of the config), as TorchSpec's
`convert_to_hf` writes them with its vLLM flag, and as this package does.

TorchSpec marks its exports with `_torchspec_version`, has `midlayer.*` without the flag, and counts outputs of
layers in its configs; only for Kimi-K2 targets does its vLLM flag turn them into vLLM's count. Its
`--prune-vocab` has taken the lm_head's rows at the offsets of d2t in place of the ids: such a head is lost.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import HeadError
from ...targets.target import Target
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..lm_head import LmHead
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import OWN_CLASSES, UNKNOWN
from ..source import Source
from ..windows import Windows

#: Its linear, dynamic and multimodal RoPE have the default base, whatever is said.
_TORCHSPEC = replace(OWN_CLASSES, based_at_default=("linear", "dynamic", "mrope"))


def recognise(source: Source) -> Evidence | None:
    if source.config.get("_torchspec_version") and source.has("fc.weight"):
        return Evidence([f"_torchspec_version is {source.config.get('_torchspec_version')}"], strength=3)
    if _later(source):
        return Evidence(["tensors midlayer.*", "norm_output is true, as in EAGLE-3.1"], strength=3)
    q, o = source.shape("layers.0.self_attn.q_proj.weight"), source.shape("layers.0.self_attn.o_proj.weight")
    if len(q) != 2 or len(o) != 2 or q[1] != 2 * o[0] or source.config.get("eagle_config"):
        return None
    points = ["tensors layers.0.*, its attention widened to [embed, hidden]"]
    if source.config.get("eagle_aux_hidden_state_layer_ids"):
        return Evidence([*points, "layer ids at the top of the config, where vLLM reads them"], 3, names_trainer=False)
    return Evidence(points)


def _later(source: Source) -> bool:
    """EAGLE-3.1 (arXiv 2605.09992) under SpecForge's names, where nothing says that SpecForge wrote it: `norm_output`
    is another thing there."""
    config = source.config
    named = config.architecture == "LlamaForCausalLMEagle3" and source.has(
        "fc.weight", "midlayer.self_attn.q_proj.weight"
    )
    return named and bool(config.flag("norm_output")) and not {"eagle_config", "target_model_type"} & set(config.values)


def read(source: Source, target: Target, options: Options) -> Reading:
    torchspec = bool(source.config.get("_torchspec_version"))
    if torchspec and source.has("d2t", "lm_head.weight"):
        _check_pruning(source)
    outputs = torchspec and source.config.get("model_type") != "kimi_k2"
    if torchspec:
        rope, windows = _TORCHSPEC, Windows.IGNORED
    else:  # a list of the head's own length is meant for vLLM, which reads it
        layers = sum(name.endswith("self_attn.q_proj.weight") for name in source.tensors)
        own = len(source.config.get("layer_types", ())) == layers
        rope, windows = UNKNOWN, Windows.BY_LAYER if own else Windows.UNKNOWN
    meaning = Eagle3Meaning(
        rope,
        windows,
        convention="output" if outputs else "boundary",
        residual_flag=not torchspec,
        lm_head=LmHead.OWN if torchspec else LmHead.BORROWED,
    )
    return read_eagle3(source, target, options, meaning)


def _check_pruning(source: Source) -> None:
    """Rows taken at offsets are the same wherever two neighbouring tokens have the same offset."""
    offsets, lm_head = source.tensors["d2t"].load(), source.tensors["lm_head.weight"].load()
    again = (offsets.diff() == 0).nonzero().flatten()[:8]
    if len(again) and lm_head.shape[0] == len(offsets) and bool((lm_head[again] == lm_head[again + 1]).all()):
        raise HeadError(
            f"the lm_head has the same row for different tokens ({again[0]} and {again[0] + 1}, as d2t's offsets repeat)",
            "TorchSpec's --prune-vocab took rows at the offsets of d2t in place of the ids",
            "Export it again without --prune-vocab",
        )


READERS = (Reader("vllm-eagle3", "EAGLE-3 in stock vLLM's layout (TorchSpec)", recognise, read, EAGLE3_OPTIONS),)
