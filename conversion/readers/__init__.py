"""One module per producer: what its files look like and what they mean."""

from ..reading import Reader
from . import (
    angelslim,
    automodel,
    converted,
    deepspec,
    feature,
    hass,
    modelopt,
    projection,
    safeailab,
    safeailab3,
    sglang,
    specforge,
    speculators,
    surgery,
    vllm_layout,
    vllm_v0,
)

_MODULES = (
    safeailab, hass, vllm_v0, sglang, speculators, automodel, safeailab3, specforge, angelslim, deepspec, modelopt, vllm_layout,
    feature, surgery, projection, converted,
)  # fmt: skip

#: Every producer by name, in the order the documentation lists them.
READERS: dict[str, Reader] = {reader.name: reader for module in _MODULES for reader in module.READERS}
