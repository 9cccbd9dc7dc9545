"""P-EAGLE heads of speculators and SpecForge. `tests/test_peagle.py` serves one: what it drafts behind masks has no closed form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead

from .eagle3 import layer_outputs, vocabulary
from .exports import speculators
from .layout import DEEP, Fixture, llama, save_config, save_safetensors, state_of


def peagle(head: ReferenceHead, folder: Path) -> None:
    """As `eagle3`, with the mask that stands for hidden states."""
    assert isinstance(head.config, Eagle3Config)
    speculators(head, folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {"speculators_model_type": "peagle", "architectures": ["PEagleSpeculator"]}
    save_config({**described, "mask_token_id": head.config.mask_token_id}, folder)
    assert "mask_hidden" in load_file(folder / "model.safetensors")


def specforge(head: ReferenceHead, folder: Path) -> None:
    """`PEagleDraftModel`: layer ids nested and counted as outputs, a copy of the embedding."""
    assert isinstance(head.config, Eagle3Config)
    assert head.target_embedding is not None
    state = {**state_of(head), **vocabulary(head), "embed_tokens.weight": head.target_embedding}
    save_safetensors(state, folder)
    nested = {"eagle_aux_hidden_state_layer_ids": layer_outputs(head.config), "use_aux_hidden_state": True}
    more = {
        "architectures": ["PEagleDraftModel"], "draft_vocab_size": head.config.draft_vocab, "head_dim": 32,
        "mask_token_id": head.config.mask_token_id, "norm_before_residual": False, "eagle_config": nested,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},  # not read
    }  # fmt: skip
    save_config(llama(head.config, **more), folder)


_PARALLEL: dict[str, Any] = {"case": "peagle", "layers": DEEP, "exact": False}
FIXTURES = {
    "speculators-peagle": Fixture("speculators-peagle", write=peagle, **_PARALLEL),
    "specforge-peagle": Fixture("specforge-peagle", write=specforge, same_as="speculators-peagle", **_PARALLEL),
}
