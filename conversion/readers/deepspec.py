"""DeepSpec EAGLE-3 (`Qwen3Eagle3Model`): five layers of the target, a layer with q/k norms, the target's tables.

Its config is the target's own with `target_layer_ids`, which count outputs of layers. Embedding and lm_head are
frozen copies. With more than one layer each reads the embedding again; DeepSpec's evaluator takes one. Layers of its
Gemma-4 models have norms that no class of vLLM has (`foreign`).
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import HeadError
from ...targets.target import Target
from ..aux_layers import KEY
from ..described import Described
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..lm_head import LmHead
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import TRANSFORMERS
from ..source import Source
from ..windows import Windows

_ARCHITECTURE = "Qwen3Eagle3Model"
_LAYERS = "target_layer_ids"
_MEANING = Eagle3Meaning(
    TRANSFORMERS,
    Windows.IGNORED,
    flagged_biases=True,
    residual_flag=False,
    convention="output",
    lm_head=LmHead.BORROWED,
)


def recognise(source: Source) -> Evidence | None:
    if source.config.architecture == _ARCHITECTURE and source.has("fc.weight"):
        return Evidence([f"architectures is {_ARCHITECTURE}", f"{_LAYERS} in its config"], strength=3)
    if source.config.get(_LAYERS) and source.config.get("ttt_length") and source.has("fc.weight"):
        return Evidence([f"{_LAYERS} and ttt_length in its config"], strength=3)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    layers = source.config.number("num_hidden_layers") or 1
    if layers > 1 or source.has("layers.1.hidden_norm.weight"):
        raise HeadError(
            f"the head has {layers} layers, and in DeepSpec each of them reads the embedding",
            "One layer was expected, as DeepSpec's own evaluator does: no class of vLLM widens more",
            "Train it with draft_num_hidden_layers 1",
        )
    ids = source.config.layers(_LAYERS)
    if ids and max(ids) == target.num_layers - 1 and options.aux_ids is None:
        raise HeadError(
            f"{_LAYERS} {ids} has the target's last layer",
            "DeepSpec reads that one behind the final norm, vLLM hands over what is before it",
            "Train it on earlier layers",
        )
    named = {**source.config.values, KEY: ids} if ids else source.config.values
    source.config.get(_LAYERS)
    source = replace(source, config=Described(named, read=source.config.read))
    return read_eagle3(source, target, options, _MEANING)


READERS = (
    Reader("deepspec", "DeepSpec EAGLE-3 (Qwen3Eagle3Model, target_layer_ids)", recognise, read, EAGLE3_OPTIONS),
)
