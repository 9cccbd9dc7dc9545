"""EAGLE-1 heads inside what vLLM V0 and speculators 0.1 wrapped around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_eagle_plugin.reference import ReferenceHead

from .eagle1 import with_embedding
from .layout import Fixture, State, llama, prefixed, renamed, save_config, save_safetensors, state_of


def lm_head_of(head: ReferenceHead) -> Tensor:
    assert head.target_lm_head is not None
    return head.target_lm_head.clone()


def wrapped(head: ReferenceHead, folder: Path, outside: dict[str, Any], **inside: Any) -> None:
    save_config({"model_type": "eagle", "model": llama(head.config, **inside), **outside}, folder)


def bias_inside(head: ReferenceHead, folder: Path) -> None:
    """As the conversion script of vllm#11866 wrote it: `eagle_fc_bias` in the inner config, a copied lm_head."""
    save_safetensors({**with_embedding(head, state_of(head)), "lm_head.weight": lm_head_of(head)}, folder)
    wrapped(head, folder, {}, eagle_fc_bias=True)


def bias_outside(head: ReferenceHead, folder: Path) -> None:
    """Where V0 read it."""
    save_safetensors({**state_of(head), "lm_head.weight": lm_head_of(head)}, folder)
    wrapped(head, folder, {"eagle_fc_bias": True, "architectures": ["EAGLEModel"]})


def all_norms(head: ReferenceHead, folder: Path) -> None:
    """V0's enhanced form: four norms, V0's own module names, no lm_head."""
    state = renamed(state_of(head), {"embed_norm.": "enorm.", "hidden_norm.": "hnorm."})
    outer = [name for name in state if name.split(".")[0] in ("fc", "enorm", "hnorm")]
    save_safetensors(prefixed(state, "model.model.", besides=outer), folder)
    wrapped(head, folder, {}, add_para_norm=True, skip_prenorm=False, skip_output_norm=False)


def skipped_prenorm(head: ReferenceHead, folder: Path) -> None:
    """V0 skipped the layer's input norm by default and kept its weight all the same."""
    state = renamed(state_of(head), {"embed_norm.": "enorm.", "hidden_norm.": "hnorm."})
    state["layers.0.input_layernorm.weight"] = torch.rand(head.config.hidden_size) + 0.5
    save_safetensors(state, folder)
    wrapped(head, folder, {}, add_para_norm=True)


def _mapped(head: ReferenceHead) -> tuple[State, Tensor]:
    state = state_of(head)
    return state, torch.arange(head.config.draft_vocab) + state.pop("d2t")


def token_map(head: ReferenceHead, folder: Path) -> None:
    """A reduced vocabulary as absolute ids, the lm_head cut to it."""
    state, ids = _mapped(head)
    save_safetensors({**state, "token_map": ids}, folder)
    wrapped(head, folder, {"truncated_vocab_size": len(ids), "vocab_size": head.config.vocab_size})


def token_map_whole_lm_head(head: ReferenceHead, folder: Path) -> None:
    """The same with an lm_head over all tokens, which V0 cut when it loaded it."""
    state, ids = _mapped(head)
    whole = torch.randn(head.config.vocab_size, head.config.hidden_size)
    whole[ids] = state["lm_head.weight"]
    save_safetensors({**state, "lm_head.weight": whole, "token_map": ids.to(torch.int32)}, folder)
    wrapped(head, folder, {"truncated_vocab_size": len(ids)})


def speculators(head: ReferenceHead, folder: Path) -> None:
    """speculators 0.1/0.2 `eagle`: names of its own, the layer described inside, no embedding and no lm_head."""
    names = {
        "fc.": "fusion_fc.", "layers.0.": "transformer.", "embed_norm.": "embedding_layernorm.",
        "norm.": "pre_lm_head_layernorm.",
    }  # fmt: skip
    save_safetensors(renamed(state_of(head), names), folder)
    flags = head.config.to_dict()
    described = {
        "architectures": ["EagleSpeculator"], "speculators_model_type": "eagle", "speculators_version": "0.1.0",
        "fusion_bias": flags["fc_bias"], "layernorms": flags["embed_norm"],
        "transformer_layer_architecture": "LlamaDecoderLayer", "transformer_layer_config": llama(head.config),
        "speculators_config": {"algorithm": "eagle", "verifier": {"name_or_path": "target"}},
    }  # fmt: skip
    save_config(described, folder)


FIXTURES = {
    "vllm-v0": Fixture("vllm-v0", "eagle-fc-bias", bias_inside, same_as="safeailab-eagle"),
    "vllm-v0: flag outside": Fixture("vllm-v0", "eagle-fc-bias", bias_outside, same_as="safeailab-eagle"),
    "vllm-v0: all norms": Fixture("vllm-v0", "eagle-four-norms", all_norms),
    "vllm-v0: skipped norm": Fixture("vllm-v0", "eagle-enorm-hnorm", skipped_prenorm),
    "vllm-v0: token map": Fixture("vllm-v0", "eagle-token-map", token_map),
    "vllm-v0: whole lm_head": Fixture(
        "vllm-v0", "eagle-token-map", token_map_whole_lm_head, same_as="vllm-v0: token map"
    ),
    "speculators-eagle": Fixture("speculators-eagle", "eagle-speculators", speculators),
    "speculators-eagle: no norms": Fixture(
        "speculators-eagle", "eagle-fc-bias", speculators, same_as="safeailab-eagle"
    ),
}
