"""NVIDIA ModelOpt exports (`nvidia/*-Eagle3*`): `layers.0.*`, flags in a nested `eagle_config`.

Layer ids come from a set, in any order, and releases differ in how they count them, so a list that both
countings fit must be decided by the user. Releases have left them out that were not trained on the default.

Heads without aux hidden states read the target's last one. The Megatron plugin's have their attention widened, and
no fc. The Hugging Face plugin's were EAGLE-1 with an input norm and a final norm, what is in front of which is fed
back; since they lost their fc, they never see a token, and nothing can serve them.
"""

from __future__ import annotations

from ...errors import HeadError
from ...targets.target import Target
from ..aux_layers import KEY
from ..eagle import EagleMeaning, read_eagle
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..lm_head import LmHead
from ..missing import demand
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import TRANSFORMERS
from ..source import Source
from ..windows import Windows
from .safeailab import eagle_layout

_MARKS = ("use_aux_hidden_state", "use_input_layernorm_in_first_layer", "use_last_layernorm", "parallel_draft_step")

#: Flags of eagle_config, and the norms they leave out where they are false.
_NORM_FLAGS = {"use_last_layernorm": "norm", "use_input_layernorm_in_first_layer": "input_layernorm"}


def recognise(source: Source) -> Evidence | None:
    q, o = source.shape("layers.0.self_attn.q_proj.weight"), source.shape("layers.0.self_attn.o_proj.weight")
    if len(q) != 2 or len(o) != 2 or source.config.architecture == "PEagleDraftModel":  # SpecForge's
        return None
    nested = source.config.inside("eagle_config")
    marks = [key for key in _MARKS if nested.get(key) is not None]
    widened = q[1] == 2 * o[0]
    if not widened and not marks:
        return None
    points = [f"tensors layers.0.*, its attention {'widened to [embed, hidden]' if widened else 'not widened'}"]
    if marks:
        points.append(f"eagle_config has {', '.join(marks)}")
    named = source.config.architecture.startswith("LlamaForCausalLMEagle3")
    if named:
        points.append(f"architectures is {source.config.architecture}")
    return Evidence(points, strength=3 if marks else 2 if named else 1)


def read(source: Source, target: Target, options: Options) -> Reading:
    nested = source.config.inside("eagle_config")
    parallel = nested.get("parallel_draft_step", 1)
    if parallel not in (0, 1):
        raise HeadError(
            f"eagle_config says parallel_draft_step is {parallel}: an EagleMedusa head",
            "One token after another is what vLLM drafts with EAGLE-3 heads",
            "Export it with parallel_draft_step 1",
        )
    if nested.flag("use_aux_hidden_state") is False and not _widened(source):
        return _read_plain(source, target, options)
    told = options.aux_ids or source.config.get(KEY) or nested.get(KEY)
    if source.has("fc.weight") and not told:
        raise HeadError(
            "config.json does not say which layers of the target the head reads",
            "ModelOpt trains on whatever layers it is told, and reading others costs nearly all acceptance",
            "Pass --aux-ids; `vllm-eagle doctor` measures which",
        )
    if nested.flag("norm_before_fc"):
        demand(source, ["input_norm.weight"], "eagle_config says norm_before_fc is true")
    optional = [norm for flag, norm in _NORM_FLAGS.items() if nested.flag(flag) is False]
    if nested.flag("use_aux_hidden_state") is False:
        optional.append("hidden_norm")  # newer exporters leave it out there
    meaning = Eagle3Meaning(
        TRANSFORMERS, Windows.IGNORED, flagged_biases=True, convention=None, optional_norms=tuple(optional), unordered_ids=True,
        lm_head=LmHead.BORROWED,
    )  # fmt: skip
    return read_eagle3(source, target, options, meaning)


def _widened(source: Source) -> bool:
    q, o = (source.tensors[f"layers.0.self_attn.{n}_proj.weight"].shape for n in "qo")
    return q[1] == 2 * o[0]


def _read_plain(source: Source, target: Target, options: Options) -> Reading:
    """What the Hugging Face plugin trains without aux hidden states: EAGLE-1, later nothing that can be served."""
    if not eagle_layout(source):
        raise HeadError(
            "eagle_config says use_aux_hidden_state is false, there is no fc over [embed, hidden], and the attention "
            "is not widened",
            "ModelOpt's Hugging Face plugin never lets such a head see the token it drafts behind, as every EAGLE "
            "head must",
            "Train it with use_aux_hidden_state true",
        )
    nested = source.config.inside("eagle_config")
    for flag, norm in _NORM_FLAGS.items():
        if nested.flag(flag):
            where = "layers.0." if norm == "input_layernorm" else ""
            demand(source, [f"{where}{norm}.weight"], f"eagle_config says {flag} is true")
    return read_eagle(source, target, options, EagleMeaning(TRANSFORMERS, Windows.IGNORED, feedback="pre_norm"))


READERS = (Reader("modelopt", "NVIDIA ModelOpt EAGLE-3 (layers.0, eagle_config)", recognise, read, EAGLE3_OPTIONS),)
