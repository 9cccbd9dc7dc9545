"""EAGLE-1/2 as its producers save it: SafeAILab's tensors with their configs, names and norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm_eagle_plugin.reference import ReferenceHead

from .layout import Fixture, State, llama, renamed, save_bin, save_config, save_safetensors, state_of


def with_embedding(head: ReferenceHead, state: State) -> State:
    assert head.target_embedding is not None
    return {**state, "embed_tokens.weight": head.target_embedding.clone()}


def published(head: ReferenceHead, folder: Path) -> None:
    """`yuhuili/EAGLE-*`: `pytorch_model.bin` with the frozen embedding; the config's `bias` is fc's."""
    save_bin(with_embedding(head, state_of(head)), folder)
    save_config(llama(head.config, bias=True, pad_token_id=0, torch_dtype="float16"), folder)


def llama3(head: ReferenceHead, folder: Path) -> None:
    """Without fc's bias, and with an old dump's RoPE buffer."""
    state = with_embedding(head, state_of(head))
    state["layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(16)
    save_safetensors(state, folder)
    save_config(llama(head.config, bias=False), folder)


def mixtral(head: ReferenceHead, folder: Path) -> None:
    """A Mixtral config of a Llama layer: no rope_theta, and its class would make it a million."""
    save_bin(state_of(head), folder)
    more: dict[str, Any] = {"model_type": "mixtral", "max_sequence_length": 2048, "num_experts_per_tok": 2}
    save_config(llama(head.config, rope_theta=..., max_position_embeddings=..., **more), folder)


def qwen2(head: ReferenceHead, folder: Path) -> None:
    """Biases on q, k and v (`qkv_bias`) and on fc, under Qwen2's own architecture."""
    save_bin(with_embedding(head, state_of(head)), folder)
    save_config(llama(head.config, architectures=["Qwen2ForCausalLM"], model_type="qwen2", qkv_bias=True), folder)


def self_trained(head: ReferenceHead, folder: Path) -> None:
    """Trained with the release's code, which always has fc's bias, on a config that denies it."""
    save_bin(with_embedding(head, state_of(head)), folder)
    save_config(llama(head.config, bias=False), folder)


def hass(head: ReferenceHead, folder: Path) -> None:
    """The three norms of HASS with layer norms, by its trainer's names."""
    names = {"embed_norm.": "embed_layernorm.", "hidden_norm.": "hidden_layernorm.", "norm.": "lm_head_layernorm."}
    save_safetensors(with_embedding(head, renamed(state_of(head), names)), folder)
    save_config(llama(head.config, bias=False), folder)


def sglang(head: ReferenceHead, folder: Path) -> None:
    """`lmsys/sglang-EAGLE-*`: the same weights under sglang's architecture name."""
    save_bin(with_embedding(head, state_of(head)), folder)
    save_config(llama(head.config, architectures=["LlamaForCausalLMEagle"], bias=False), folder)


def baldeagle(head: ReferenceHead, folder: Path) -> None:
    """Hugging Face's trainer: unprefixed names, fc's bias, no embedding, its own files beside them."""
    save_safetensors(state_of(head), folder)
    save_config(llama(head.config, architectures=["LlamaForCausalLMEagle"]), folder)
    trainer_files(folder)


def trainer_files(folder: Path) -> None:
    """What Hugging Face's trainer leaves in a checkpoint beside the model."""
    save_bin({"state": {}, "param_groups": []}, folder, "optimizer.pt")
    save_bin({"last_epoch": 3}, folder, "scheduler.pt")
    torch.save({"python": (3, (1, 2), None)}, folder / "rng_state.pth")
    torch.save({"output_dir": "out"}, folder / "training_args.bin")
    save_config({"epoch": 1.0, "log_history": []}, folder, "trainer_state.json")


def automodel(head: ReferenceHead, folder: Path) -> None:
    """A checkpoint of NeMo Automodel: the model two folders down, the target's config, a trainer's side files."""
    inner = folder / "model" / "consolidated"
    save_safetensors(with_embedding(head, state_of(head)), inner)
    more = {"architectures": ["LlamaEagleDraftModel"], "num_hidden_layers": 32, "draft_num_hidden_layers": 1}
    save_config(llama(head.config, **more), inner)
    torch.save({"global_step": 10, "epoch": 2}, folder / "eagle_meta.pt")
    save_config({"train_loss": 1.5}, folder, "losses.json")


FIXTURES = {
    "safeailab-eagle": Fixture("safeailab-eagle", "eagle-fc-bias", published),
    "safeailab-eagle: Llama-3": Fixture("safeailab-eagle", "eagle", llama3),
    "safeailab-eagle: Mixtral": Fixture("safeailab-eagle", "eagle", mixtral, same_as="safeailab-eagle: Llama-3"),
    "safeailab-eagle: Qwen2": Fixture("safeailab-eagle", "eagle-qkv-bias-only", qwen2),
    "safeailab-eagle: two layers": Fixture("safeailab-eagle", "eagle-two-layers", llama3),
    "safeailab-eagle: self-trained": Fixture(
        "safeailab-eagle", "eagle-fc-bias", self_trained, same_as="safeailab-eagle"
    ),
    "hass-layernorm": Fixture("hass-layernorm", "eagle-hass", hass),
    "sglang-eagle": Fixture("sglang-eagle", "eagle", sglang, same_as="safeailab-eagle: Llama-3"),
    "baldeagle": Fixture("baldeagle", "eagle-fc-bias", baldeagle, same_as="safeailab-eagle"),
    "automodel-eagle": Fixture("automodel-eagle", "eagle-input-norm-post", automodel),
}
