"""SafeAILab EAGLE-1/2 (`yuhuili/EAGLE-*`, eagle/train, eagle_llm) and heads in its layout, such as HASS.

`fc`, `layers.i`, perhaps `embed_tokens`; no norm in front of layer 0 and none behind the last. The config's
`bias` is meant for fc, true by default and often wrong, so the tensors decide. Mixtral heads have no
rope_theta and were trained at 10000, which a Mixtral config would turn into a million. The PyPI package
eagle_llm (1.2.1) trains at 10000 whatever config.json says; the repository's later code reads rope_theta.
"""

from __future__ import annotations

from ...targets.target import Target
from ..decoder import if_named
from ..eagle import EAGLE_OPTIONS, EagleMeaning, read_eagle
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import OWN_CLASSES
from ..source import Source


def eagle_layout(source: Source) -> list[str]:
    """Evidence for `fc` over [embed, hidden] and layers of their usual width; empty if there is none."""
    fc, q = source.shape("fc.weight"), source.shape("layers.0.self_attn.q_proj.weight")
    if len(fc) == len(q) == 2 and fc[1] == 2 * fc[0] and q[1] == fc[0]:
        return ["tensors fc.* and layers.0.*", "fc reads [embed, hidden] of one width", "layer 0 is not widened"]
    return []


def recognise(source: Source) -> Evidence | None:
    points = eagle_layout(source)
    extra = source.has("norm.weight") or source.has("layers.0.input_layernorm.weight")
    return Evidence(points, strength=1 if extra else 2) if points else None


def read(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle(source, target, options, EagleMeaning(**if_named(options, OWN_CLASSES)))


READERS = (Reader("safeailab-eagle", "SafeAILab EAGLE-1/2 (fc, layers.i)", recognise, read, EAGLE_OPTIONS),)
