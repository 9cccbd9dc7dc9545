"""Reading EAGLE-3 heads, whatever their producer calls their parts.

Tensors decide what there is; a producer's `Eagle3Meaning` says what tensors cannot show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..configs import Eagle3Config
from ..errors import HeadError
from ..targets.target import Target
from .aux_layers import aux_layers
from .decoder import LayerMeaning, decoder_flags, take_layers
from .described import Described
from .embeddings import need_embedding, take_embedding
from .intake import Intake
from .lm_head import LmHead, take_lm_head
from .missing import demand, given_up
from .options import Options
from .reading import Reading
from .source import Source

#: The options that change how these heads are read.
EAGLE3_OPTIONS = ("rope_theta", "aux_ids", "aux_ids_convention", "d2t")


@dataclass(frozen=True)
class Eagle3Meaning(LayerMeaning):
    """What a producer's EAGLE-3 code does that its tensors do not show."""

    #: How its config counts the target's layers; None: its files do not tell.
    convention: str | None = "boundary"
    #: What `norm_output: true` in its config means: the stream behind the norm is fed back (`feedback`, as
    #: in vLLM), or there is a norm before the lm_head (`norm`, as in SpecForge), or nothing (`unread`).
    norm_output: str = "feedback"
    #: Whether its layers read `norm_before_residual`; in the others the residual starts before `hidden_norm`.
    residual_flag: bool = True
    #: Norms of this producer that a whole head can lack, as its config says: the others are missing tensors.
    optional_norms: tuple[str, ...] = ()
    #: Its list of layers is a set, in any order; hidden states are collected in the order of the layers.
    unordered_ids: bool = False
    lm_head: LmHead = LmHead.OWN


def read_eagle3(
    source: Source, target: Target, options: Options, meaning: Eagle3Meaning, described: Described | None = None
) -> Reading:
    """The head in `source` for `target`; `described` is where its layers are described, by default config.json."""
    top = source.config
    described = described or top
    intake = Intake(source)
    fusion = _take_fusion(intake, target)
    prefix = "midlayer" if "midlayer.self_attn.q_proj.weight" in intake else "layers.0"
    for name in (f"{prefix}.input_layernorm", f"{prefix}.hidden_norm", "norm"):
        wanted = name.removeprefix(f"{prefix}.") not in meaning.optional_norms
        if wanted and not given_up(source, f"{name}.weight"):
            intake.look(f"{name}.weight")
    parallel = _take_parallel(intake, top, fusion)
    layers = take_layers(intake, ["midlayer", "layers.0"], first_norm=None)
    width = intake.taken["layers.0.self_attn.o_proj.weight"].shape[0]
    _check_width(intake, target, width, bool(fusion["use_aux_hidden_state"]))
    hidden_norm = intake.take_if(f"{prefix}.hidden_norm.weight", "layers.0.hidden_norm.weight", (width,))
    output_norm = intake.take_if("norm.weight", shape=(width,))
    if described.get("num_hidden_layers", layers) != layers:
        intake.note(
            f"config.json says {described.get('num_hidden_layers')} layers; the tensors have {layers}, used: "
            "vLLM would have left the others uninitialised"
        )
    own_embedding = take_embedding(intake, "embed_tokens.weight", target, width)
    need_embedding(intake, target, width)
    head = take_lm_head(intake, top, options, target, width, meaning.lm_head)
    if fusion["use_aux_hidden_state"]:
        fusion["eagle_aux_hidden_state_layer_ids"] = aux_layers(
            intake, top, options, target, fusion["num_aux_hidden_states"], meaning.convention, meaning.unordered_ids
        )
        _order_fusion(intake, options.aux_ids or ())
    config = Eagle3Config(
        vocab_size=target.vocab_size,
        target_hidden_size=target.hidden_size,
        num_hidden_layers=layers,
        own_embedding=own_embedding,
        input_norm="layers.0.input_layernorm.weight" in intake.taken,
        hidden_norm=hidden_norm,
        output_norm=output_norm,
        norm_before_residual=bool(meaning.residual_flag and _nested_flag(top, "norm_before_residual", False)),
        feedback=_feedback(intake, top, meaning, output_norm),
        **fusion,
        **parallel,
        **head,
        **decoder_flags(intake, described, options, target, width, meaning),
    )
    return Reading.of(config, intake)


def _take_fusion(intake: Intake, target: Target) -> dict[str, Any]:
    """fc over the aux hidden states with the norms around it, or nothing where the head reads the last state."""
    if "fc.weight" not in intake:
        if intake.source.config.inside("eagle_config").flag("use_aux_hidden_state") is not False:
            raise HeadError(
                "fc.weight is missing",
                "The fusion of the aux hidden states was expected",
                "Export the head again, whole. One that reads only the target's last hidden state says so in "
                'config.json: "eagle_config": {"use_aux_hidden_state": false}',
            )
        return {"use_aux_hidden_state": False}
    if intake.source.config.inside("eagle_config").flag("use_aux_hidden_state") is False:
        raise HeadError(
            "eagle_config says use_aux_hidden_state is false, and there is an fc.weight",
            "A head without aux hidden states has none",
            "Correct the flag, or leave the tensor out with --drop fc.weight",
        )
    fc = intake.take("fc.weight", shape=(None, None))
    count, rest = divmod(fc.shape[1], target.hidden_size)
    if rest or not count:
        raise HeadError(
            f"fc.weight is {list(fc.shape)} but this target's hidden size is {target.hidden_size}",
            "Its columns are some layers of the target side by side: a multiple of the hidden size was expected",
            "Is this head for another target?",
        )
    fc_bias = intake.take_if("fc.bias", shape=(fc.shape[0],))
    norm_before_fc = intake.take_if("input_norm.weight", shape=(fc.shape[1],))
    _compare_norms(intake.source, "norm_before_fc", "input_norm.weight", norm_before_fc)
    _compare_norms(intake.source, "fc_norm", "fc_norm.0.weight", "fc_norm.0.weight" in intake)
    norms = [i for i in range(count) if f"fc_norm.{i}.weight" in intake]
    for i in norms:
        intake.take(f"fc_norm.{i}.weight", shape=(target.hidden_size,))
    if norms and len(norms) != count:
        raise HeadError(
            f"fc_norm has {len(norms)} norms, fc reads {count} layers",
            "One norm for each layer was expected",
            "Export the head again, whole",
        )
    return {
        "num_aux_hidden_states": count,
        "fc_bias": fc_bias,
        "norm_before_fc": norm_before_fc,
        "fc_norm": bool(norms),
    }  | {"use_aux_hidden_state": True}  # fmt: skip


def _compare_norms(source: Source, flag: str, name: str, there: bool) -> None:
    """A norm before fc and the flag that speaks of it must agree: which of them is wrong decides what is computed."""
    says = _nested_flag(source.config, flag, None)
    if says and not there:
        demand(source, [name], f"config.json says {flag} is true")
    if says is False and there:
        raise HeadError(
            f"config.json says {flag} is false, and {name} is there",
            "The norm is applied where the flag is true",
            f"Correct the flag, or leave the norm out with --drop {name}",
        )


def _take_parallel(intake: Intake, top: Described, fusion: dict[str, Any]) -> dict[str, Any]:
    """P-EAGLE's mask, which says that the head drafts all tokens at once."""
    if "mask_hidden" not in intake:
        if top.flag("parallel_drafting"):
            demand(intake.source, ["mask_hidden"], "config.json says parallel_drafting is true")
        return {}
    width = intake.taken["fc.weight"].shape[1] if fusion["use_aux_hidden_state"] else None
    stored = intake.look("mask_hidden")
    if width is None or stored.numel != width:
        raise HeadError(
            f"mask_hidden is {list(stored.shape)}",
            f"As many values as fc reads ({width}) were expected",
            "Export the head again, whole",
        )
    said = {key: top.get(key) for key in ("mask_token_id", "ptd_token_id", "pard_token")}
    tokens = {token for token in said.values() if type(token) is int}
    token = tokens.pop() if tokens else None
    if tokens:
        raise HeadError(
            f"config.json says {', '.join(f'{k} {v}' for k, v in said.items() if v is not None)}",
            "All are names for the one token that masks",
            "Remove those that it was not trained with",
        )
    if token is None:
        raise HeadError(
            f"the head has mask_hidden, and config.json says mask_token_id is {said['mask_token_id']!r}",
            "A head that drafts in parallel masks with one of the target's tokens",
            "Add mask_token_id to config.json",
        )
    intake.take("mask_hidden", change=lambda t: t.reshape(1, 1, width))
    intake.note(f"drafts all tokens of a chain in one pass (P-EAGLE), masked with token {token}")
    return {"parallel_drafting": True, "mask_token_id": token}


def _order_fusion(intake: Intake, ids: Sequence[int]) -> None:
    """Columns of fc, and norms in front of it, from the order the user gives into vLLM's: ascending."""
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    if order == list(range(len(ids))):
        return
    taken = intake.taken
    for name in ("fc.weight", "input_norm.weight"):
        if name in taken:
            taken[name] = taken[name].changed(lambda t: torch.cat([t.chunk(len(order), -1)[i] for i in order], -1))
    if "fc_norm.0.weight" in taken:
        norms = [taken[f"fc_norm.{i}.weight"] for i in range(len(order))]
        taken.update({f"fc_norm.{new}.weight": norms[old] for new, old in enumerate(order)})
    intake.note(f"columns of fc permuted from layers {', '.join(map(str, ids))} to ascending order")


def _check_width(intake: Intake, target: Target, width: int, fused: bool) -> None:
    q = intake.taken["layers.0.self_attn.q_proj.weight"]
    if q.shape[1] != 2 * width:
        raise HeadError(
            f"q_proj of the first layer reads {q.shape[1]} values",
            f"{2 * width} were expected: the embedding and the fused hidden state, side by side",
            "If it is an EAGLE-1 head, name its producer with --producer",
        )
    if fused and intake.taken["fc.weight"].shape[0] != width:
        raise HeadError(
            f"fc.weight has {intake.taken['fc.weight'].shape[0]} rows, the layers are {width} wide",
            "They were expected to be equal",
            "Export the head again, whole",
        )
    if not fused and width != target.hidden_size:
        raise HeadError(
            f"there is no fc.weight, and the head is {width} wide but the target {target.hidden_size}",
            "A head without fc reads the target's last hidden state as it is",
            "Was fc.weight lost in the export?",
        )


def _feedback(intake: Intake, top: Described, meaning: Eagle3Meaning, output_norm: bool) -> str:
    if meaning.norm_output == "unread":
        return "pre_norm"
    says = _nested_flag(top, "norm_output", None)
    if meaning.norm_output == "norm":
        if says is not None and says != output_norm:
            intake.note(
                f"config.json says norm_output {says}; norm.weight is {'there' if output_norm else 'not there'}"
            )
        if says and output_norm:
            intake.note("norm_output means a norm before the lm_head here; the stream before it is fed back")
        return "pre_norm"
    return "post_norm" if says and output_norm else "pre_norm"


def _nested_flag(top: Described, name: str, default: bool | None) -> Any:
    """A flag at the top of the config, or in its eagle_config."""
    nested = top.inside("eagle_config").flag(name)
    return top.flag(name, default if nested is None else nested)
