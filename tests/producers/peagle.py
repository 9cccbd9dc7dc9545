"""P-EAGLE heads of speculators. `tests/test_peagle.py` serves one: what it drafts behind masks has no closed form."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead

from .exports import speculators
from .layout import DEEP, Fixture, save_config


def peagle(head: ReferenceHead, folder: Path) -> None:
    """As `eagle3`, with the mask that stands for hidden states."""
    assert isinstance(head.config, Eagle3Config)
    speculators(head, folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {"speculators_model_type": "peagle", "architectures": ["PEagleSpeculator"]}
    save_config({**described, "mask_token_id": head.config.mask_token_id}, folder)
    assert "mask_hidden" in load_file(folder / "model.safetensors")


FIXTURES = {"speculators-peagle": Fixture("speculators-peagle", "peagle", peagle, layers=DEEP, exact=False)}
