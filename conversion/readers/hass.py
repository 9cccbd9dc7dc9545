"""HASS with layer norms (`hass-*-layernorms`, `nm-testing/*TTT`): EAGLE-1 with three norms more.

`embed_layernorm` on the embedding and `hidden_layernorm` on the hidden state, both before fc, and
`lm_head_layernorm` before the lm_head; what is in front of the last is fed back. (speculators 0.1's converter
took `hidden_layernorm` for the layer's input norm, behind fc, which its trainer does not have.) HASS without
them is EAGLE-1 in SafeAILab's layout.
"""

from __future__ import annotations

from ...targets.target import Target
from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..missing import demand
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..renaming import renamed
from ..rope import OWN_CLASSES
from ..source import Source
from ..windows import Windows
from .safeailab import eagle_layout

_OWN = {
    "embed_layernorm.weight": "embed_norm.weight",
    "hidden_layernorm.weight": "hidden_norm.weight",
    "lm_head_layernorm.weight": "norm.weight",
}


def recognise(source: Source) -> Evidence | None:
    found = [name for name in _OWN if source.has(name)]
    if found and eagle_layout(source):
        return Evidence([*eagle_layout(source), f"norms {', '.join(found)}"], strength=3)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    demand(source, _OWN, "heads with any of HASS's norms have all three")
    return read_eagle(renamed(source, _OWN), target, options, EagleMeaning(OWN_CLASSES, Windows.IGNORED))


READERS = (Reader("hass-layernorm", "HASS with norms around an EAGLE-1 layer", recognise, read, EAGLE_OPTIONS),)
