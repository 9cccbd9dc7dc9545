"""HASS with layer norms (`hass-*-layernorms`, `nm-testing/*TTT`): EAGLE-1 with three norms more.

`embed_layernorm` on the embedding, `hidden_layernorm` in front of the layer (on fc's output), and
`lm_head_layernorm` before the lm_head. HASS without them is EAGLE-1 in SafeAILab's layout.
"""

from __future__ import annotations

from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..renaming import renamed
from ..source import Source
from ..target import Target
from .safeailab import eagle_layout

_OWN = {
    "embed_layernorm.weight": "embed_norm.weight",
    "hidden_layernorm.weight": "layers.0.input_layernorm.weight",
    "lm_head_layernorm.weight": "norm.weight",
}


def recognise(source: Source) -> Evidence | None:
    found = [name for name in _OWN if source.has(name)]
    if found and eagle_layout(source):
        return Evidence([*eagle_layout(source), f"norms {', '.join(found)}"], strength=3)
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle(renamed(source, _OWN), target, options, EagleMeaning())


READERS = (Reader("hass-layernorm", "HASS with norms around an EAGLE-1 layer", recognise, read, EAGLE_OPTIONS),)
