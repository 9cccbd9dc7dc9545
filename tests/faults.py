"""Sound heads as trainers save them, and the faults that are planted in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vllm_eagle_plugin.configs import AttentionFreeConfig, Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead


@dataclass
class Saved:
    """What a trainer left of a head: tensors and config, to be damaged before they are written."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if self.config:
            (folder / "config.json").write_text(json.dumps(self.config))
        save_file({n: t.contiguous() for n, t in self.tensors.items()}, folder / "model.safetensors")
        return folder


def saved(head: ReferenceHead) -> Saved:
    """A head in SafeAILab's layout (with its mask `t2d`), or a bare state dict where it has no attention."""
    tensors, config = {n: t.clone() for n, t in head.state_dict().items()}, head.config
    if isinstance(config, AttentionFreeConfig):
        inner = tensors.pop("body.input_projection.weight")
        embed, hidden = inner.split([config.embed_width, config.hidden_size], 1)
        named = {n.removeprefix("body.").replace("blocks", "regression"): t for n, t in tensors.items()}
        return Saved({**named, "input_projection.weight": torch.cat((hidden, embed), 1)})
    rope = config.rope_parameters or {}
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim, "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_hidden_layers, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope.get("rope_theta", 10000.0),
    }  # fmt: skip
    if isinstance(config, Eagle3Config):
        tensors = {n.replace("layers.0.", "midlayer."): t for n, t in tensors.items()}
        described |= {
            "draft_vocab_size": config.draft_vocab,
            "eagle_aux_hidden_state_layer_ids": config.eagle_aux_hidden_state_layer_ids,
            "norm_before_residual": config.norm_before_residual,
            "norm_output": config.feedback == "post_norm",
        }
        if "d2t" in tensors:
            mask = torch.zeros(config.vocab_size, dtype=torch.bool)
            mask[torch.arange(config.draft_vocab) + tensors["d2t"]] = True
            tensors["t2d"] = mask
    return Saved(tensors, described)


Damage = Callable[[Saved], None]


def says(**config: Any) -> Damage:
    """The config says something else."""
    return lambda head: head.config.update(config)


def layers(*ids: int) -> Damage:
    return says(eagle_aux_hidden_state_layer_ids=list(ids))


def chunks(*order: int) -> Damage:
    """fc reads the layers in another order: chunk i of its columns is what chunk order[i] was."""

    def damage(head: Saved) -> None:
        parts = head.tensors["fc.weight"].chunk(len(order), 1)
        head.tensors["fc.weight"] = torch.cat([parts[i] for i in order], 1)

    return damage


def swapped(name: str = "fc.weight") -> Damage:
    """The other order of [embed, hidden]."""

    def damage(head: Saved) -> None:
        head.tensors[name] = torch.cat(head.tensors[name].chunk(2, 1)[::-1], 1)

    return damage


def stray(name: str, *shape: int, scale: float = 1.0) -> Damage:
    """A tensor that was never trained is saved along."""

    def damage(head: Saved) -> None:
        torch.manual_seed(7)
        head.tensors[name] = torch.randn(shape) * scale

    return damage


def other_d2t(head: Saved) -> None:
    """The mapping of another run; the mask is right."""
    head.tensors["d2t"] = head.tensors["d2t"].flip(0)


def d2t_never_saved(head: Saved) -> None:
    """Zeros instead of the mapping; the mask is right."""
    head.tensors["d2t"].zero_()


def noise(name: str) -> Damage:
    """A tensor that is as it was before training."""

    def damage(head: Saved) -> None:
        torch.manual_seed(7)
        torch.nn.init.kaiming_uniform_(head.tensors[name], a=5**0.5)

    return damage
