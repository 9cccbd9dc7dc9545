"""SafeAILab EAGLE-3 (`yuhuili/EAGLE3-*`) and the layouts that follow it.

One `midlayer` over [embed, fused hidden], `fc` over three layers of the target, `norm`, `lm_head` over a
reduced vocabulary with `d2t` offsets and the `t2d` mask; usually no embedding. Its configs may claim the
target's number of layers. Its inference code honours `rope_theta`, its training code does not: a head that
was trained with it on a copied config has 10000 whatever the config says, which `doctor` measures.
"""

from __future__ import annotations

from ...targets.target import Target
from ..decoder import if_named
from ..eagle3 import EAGLE3_OPTIONS, Eagle3Meaning, read_eagle3
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..rope import OWN_CLASSES
from ..source import Source


def recognise(source: Source) -> Evidence | None:
    if source.has("fc.weight", "midlayer.self_attn.q_proj.weight"):
        return Evidence(["tensors fc.weight and midlayer.*"])
    return None


def read(source: Source, target: Target, options: Options) -> Reading:
    return read_eagle3(source, target, options, Eagle3Meaning(**if_named(options, OWN_CLASSES)))


READERS = (Reader("safeailab-eagle3", "SafeAILab EAGLE-3 (midlayer, fc, d2t)", recognise, read, EAGLE3_OPTIONS),)
