"""Reading EAGLE-1/2 heads, once a producer's module has given their tensors SafeAILab's names.

`fc` over [embed, hidden], layers, and any of the norms that producers add: `embed_norm` and `hidden_norm`
before fc, `layers.0.input_layernorm` behind it, `norm` before the lm_head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..configs import EagleConfig
from ..targets.target import Target
from .decoder import LayerMeaning, decoder_flags, take_layers
from .described import Described
from .embeddings import take_embedding, take_lm_head
from .intake import Intake
from .options import Options
from .reading import Reading
from .source import Source
from .tokens import take_mapped_lm_head
from .vocabulary import take_vocabulary

#: The options that change how these heads are read.
EAGLE_OPTIONS = ("rope_theta", "fc_order", "token_map", "d2t")


@dataclass(frozen=True)
class EagleMeaning(LayerMeaning):
    """What a producer's EAGLE-1 code does that its tensors do not show."""

    #: Order of fc's columns.
    fc_order: str = "embed-hidden"
    #: What is fed back: the stream before or behind the final norm, where there is one.
    feedback: str = "pre_norm"


def read_eagle(
    source: Source, target: Target, options: Options, meaning: EagleMeaning, described: Described | None = None
) -> Reading:
    """The head in `source` for `target`; `described` is where its layers are described, by default config.json."""
    described = described or source.config
    intake = Intake(source)
    hidden = target.hidden_size
    order = options.fc_order or meaning.fc_order
    if order == "hidden-embed":
        intake.note("columns of fc permuted from [hidden, embed] to [embed, hidden]")
    intake.take("fc.weight", shape=(hidden, 2 * hidden), change=_swap if order == "hidden-embed" else None)
    fc_bias = intake.take_if("fc.bias", shape=(hidden,))
    _compare_bias_flag(intake, described, fc_bias)
    norms = {name: intake.take_if(f"{name}.weight", shape=(hidden,)) for name in ("embed_norm", "hidden_norm", "norm")}
    layers = take_layers(intake, ["layers.0"], first_norm=None)
    input_norm = "layers.0.input_layernorm.weight" in intake.taken
    if described.get("num_hidden_layers", layers) != layers:
        intake.note(f"config.json says {described.get('num_hidden_layers')} layers; the tensors have {layers}, used")
    own_embedding = take_embedding(intake, "embed_tokens.weight", target, hidden)
    flags = _take_lm_head(intake, options, target, hidden)
    config = EagleConfig(
        vocab_size=target.vocab_size,
        fc_bias=fc_bias,
        own_embedding=own_embedding,
        num_hidden_layers=layers,
        embed_norm=norms["embed_norm"],
        hidden_norm=norms["hidden_norm"],
        input_norm=input_norm,
        output_norm=norms["norm"],
        feedback=meaning.feedback if norms["norm"] else "pre_norm",
        **flags,
        **decoder_flags(intake, described, options, target, hidden, meaning),
    )
    return Reading.of(config, intake)


def _compare_bias_flag(intake: Intake, described: Described, fc_bias: bool) -> None:
    says = described.get("bias", fc_bias)
    if says != fc_bias:
        intake.note(
            f"config.json says bias {says}, but fc.bias is {'there' if fc_bias else 'not there'}: the tensors decide"
        )


def _take_lm_head(intake: Intake, options: Options, target: Target, hidden: int) -> dict[str, Any]:
    """Own, shared, or cut to a token map: heads for few tokens of a large vocabulary."""
    mapped = take_mapped_lm_head(intake, options, target, hidden)
    if mapped is not None:
        return mapped
    if "d2t" in intake and "lm_head.weight" in intake:
        rows = intake.take("lm_head.weight", shape=(None, hidden)).shape[0]
        take_vocabulary(intake, options, target, rows)
        return {"own_lm_head": True, "draft_vocab_size": rows}
    return take_lm_head(intake, "lm_head.weight", target, hidden)


def _swap(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2, 1)
    return torch.cat((second, first), 1)
