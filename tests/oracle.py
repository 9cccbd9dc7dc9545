"""What a producer's own draft class computes: assembled from transformers' layers and the config as it lies there.

Nothing here comes from the readers. transformers' Llama and Qwen3 layers are what the trainers' draft classes are made
of or copied from; what each trainer changes about them is said here once more, from its code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from vllm_eagle_plugin.configs import Eagle3Config, EagleConfig
from vllm_eagle_plugin.reference import ReferenceHead

from .in_process import by_target_id

#: Keys that classes after SafeAILab's code read of a config, besides sizes.
_OWN_CLASSES = ("hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters")
_OWN_KINDS = ("default", "linear", "dynamic", "llama3", "mrope", "yarn")
#: Their RoPE is plain at its default base under these kinds (TorchSpec).
_UNBASED = ("linear", "dynamic", "mrope")


class CannotLoad(Exception):
    """The producer's class does not take these tensors with this config."""


@dataclass(frozen=True)
class Trainer:
    """What a trainer's class makes of a config."""

    #: Keys it reads; None: all that transformers' class reads.
    reads: tuple[str, ...] | None = None
    windows: bool = False
    theta: float | None = None
    #: Flags of EAGLE-3 that it reads.
    flags: tuple[str, ...] = ()
    overlooks: tuple[str, ...] = ()
    unbased: tuple[str, ...] = ()
    #: `norm_output: false` leaves the final norm out (SpecForge).
    normed_by_flag: bool = False


_FORGE = ("truncate", "attention_factor")
TRAINERS = {
    "specforge": Trainer(_OWN_CLASSES, flags=("fc_norm",), overlooks=_FORGE, normed_by_flag=True),
    "specforge-peagle": Trainer(("hidden_act", "rms_norm_eps", "rope_theta"), flags=("norm_before_residual",)),
    "deepspec": Trainer(),
    "angelslim": Trainer(_OWN_CLASSES, theta=10000.0, overlooks=_FORGE),
    "torchspec": Trainer(_OWN_CLASSES, flags=("norm_output",), overlooks=_FORGE, unbased=_UNBASED),
    "hass-layernorm": Trainer(_OWN_CLASSES),
    "automodel-eagle": Trainer(),
    "automodel-eagle3": Trainer(flags=("fc_norm", "norm_output")),
    "baldeagle": Trainer(),
    "baldeagle-eagle3": Trainer(),
    "modelopt": Trainer(flags=("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")),
    "speculators-eagle": Trainer(),
    "speculators-eagle3": Trainer(windows=True, flags=("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")),
    "speculators-peagle": Trainer(windows=True, flags=("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")),
}  # fmt: skip
#: Layouts that several trainers write: whatever is said counts as stock vLLM and transformers read it.
ANYBODY = Trainer(windows=True, flags=("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"))


def class_config(described: Mapping[str, Any], head: ReferenceHead, trainer: Trainer) -> Any:
    """The config that the trainer's layers are built from."""
    config = head.config
    kept = {k: copy.deepcopy(v) for k, v in described.items() if v is not None}
    if trainer.reads is not None:
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                 "max_position_embeddings", "num_hidden_layers", "vocab_size")  # fmt: skip
        kept = {k: v for k, v in kept.items() if k in (*trainer.reads, *sizes)}
    rope = kept.get("rope_scaling") or kept.get("rope_parameters") or {}
    if trainer.reads is not None and rope.get("rope_type", rope.get("type", "default")) not in _OWN_KINDS:
        raise CannotLoad("its classes have no such RoPE")
    if trainer.theta is not None or rope.get("rope_type", rope.get("type")) in trainer.unbased:
        kept["rope_theta"] = trainer.theta or 10000.0
        rope.pop("rope_theta", None)
    for key in trainer.overlooks:
        rope.pop(key, None)
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    if rope.get("rope_type") in ("mrope", "su"):
        rope["rope_type"] = {"mrope": "default", "su": "longrope"}[rope["rope_type"]]
    rope.pop("partial_rotary_factor", None) if rope.get("rope_type", "default") == "default" else None
    kept.pop("partial_rotary_factor", None)
    if "sliding_attention" in rope:
        rope = rope["sliding_attention"] if trainer.windows else {}
    for key in ("rope_scaling", "rope_parameters"):
        kept.pop(key, None)
    if rope:
        theta = rope.pop("rope_theta", None) or kept.get("rope_theta", 10000.0)
        kept["rope_parameters"] = {"rope_type": "default", **rope, "rope_theta": theta}
    kept.pop("rope_theta", None) if rope else None
    for key in ("layer_types", "model_type", "architectures", "torch_dtype", "quantization_config"):
        kept.pop(key, None)
    kept |= {"num_hidden_layers": config.num_hidden_layers, "attn_implementation": "eager"}
    kept["attention_dropout"] = 0.0
    try:
        made = (Qwen3Config if config.qk_norm else LlamaConfig)(**kept)
    except Exception as error:  # transformers checks what it is given
        raise CannotLoad(str(error)) from error
    made._attn_implementation = "eager"
    return made


class Oracle(nn.Module):
    """A head's weights in a trainer's class."""

    def __init__(
        self, head: ReferenceHead, described: Mapping[str, Any], trainer: Trainer, top: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.head, self.trainer = head, trainer
        self.config = class_config(described, head, trainer)
        flags = {**(top.get("eagle_config") or {}), **top}
        self.flags = {k: flags.get(k) for k in trainer.flags}
        self.normed = not trainer.normed_by_flag or flags.get("norm_output") is not False
        self.mask = top.get("mask_token_id")
        own = head.config
        kind, rotary = (
            (Qwen3DecoderLayer, Qwen3RotaryEmbedding) if own.qk_norm else (LlamaDecoderLayer, LlamaRotaryEmbedding)
        )
        try:
            self.rotary = rotary(self.config)
            self.layers = nn.ModuleList(kind(self.config, i) for i in range(own.num_hidden_layers))
            self._load()
        except Exception as error:
            raise CannotLoad(str(error)) from error
        kinds = described.get("layer_types") or []
        window = described.get("sliding_window")
        windowed = trainer.windows and window and kinds
        self.windows = [window if windowed and i < len(kinds) and kinds[i] == "sliding_attention" else None for i in range(len(self.layers))]  # fmt: skip

    def _load(self) -> None:
        own, state = self.head.config, self.head.state_dict()
        eps = self.config.rms_norm_eps
        for i, layer in enumerate(self.layers):
            mine = {n.removeprefix(f"layers.{i}."): t for n, t in state.items() if n.startswith(f"layers.{i}.")}
            wide = i == 0 and isinstance(own, Eagle3Config)
            flagged = self.config.attention_bias
            for name in "qkvo":
                old = getattr(layer.self_attn, f"{name}_proj")
                bias = f"self_attn.{name}_proj.bias" in mine
                if flagged and not bias and self.trainer.reads is None:
                    raise CannotLoad("no biases")
                inside = old.in_features * (2 if wide and name != "o" else 1)
                setattr(layer.self_attn, f"{name}_proj", nn.Linear(inside, old.out_features, bias=bias))
            layer.hidden_norm = type(layer.post_attention_layernorm)(own.hidden_size, eps=eps)
            if "hidden_norm.weight" not in mine:
                layer.hidden_norm = nn.Identity()
            if "input_layernorm.weight" not in mine:
                layer.input_layernorm = nn.Identity()
            layer.load_state_dict(mine)
        norms = {n.rsplit(".weight", 1)[0] for n in state if n.endswith("norm.weight") or n.startswith("fc_norm")}
        self.norms = nn.ModuleDict()
        for name in norms:
            if name.startswith("layers."):
                continue
            made = type(self.layers[0].post_attention_layernorm)(len(state[f"{name}.weight"]), eps=eps)
            made.weight.data = state[f"{name}.weight"]
            self.norms[name.replace(".", "_")] = made

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.norms[name](x) if name in self.norms else x

    @torch.no_grad()
    def chain(self, tokens: Tensor, hidden: Tensor, drafts: list[int]) -> Tensor:
        """Logits [steps, Vd] of the chain behind `tokens` [T + 1], whose later steps are fed `drafts`."""
        own, caches = self.head.config, [None] * len(self.layers)
        state = self.fuse(hidden)
        ids, positions, logits = tokens[1:], torch.arange(len(tokens) - 1), []
        for step in range(len(drafts) + 1):
            out, fed = self.step(self.head.embed(ids), state, positions, caches)
            logits.append(self.head.logits(out[-1]))
            if step < len(drafts):
                ids, state, positions = torch.tensor([drafts[step]]), fed[-1:], positions[-1:] + 1
                if isinstance(own, Eagle3Config) and own.parallel_drafting:
                    ids = torch.tensor([self.mask])
                    state = self.fuse(self.head.mask_hidden[0])
        return by_target_id(self.head, torch.stack(logits))

    def fuse(self, hidden: Tensor) -> Tensor:
        own = self.head.config
        if isinstance(own, EagleConfig) or not own.use_aux_hidden_state:
            return hidden
        if own.norm_before_fc:
            hidden = self.norms["input_norm"](hidden)
        if own.fc_norm:
            parts = hidden.chunk(own.num_aux_hidden_states, -1)
            hidden = torch.cat([self.norms[f"fc_norm_{i}"](part) for i, part in enumerate(parts)], -1)
        return self.head.fc(hidden)

    def step(self, embed: Tensor, state: Tensor, positions: Tensor, caches: list) -> tuple[Tensor, Tensor]:
        own = self.head.config
        rope = self.rotary(embed[None], positions[None])
        eagle3 = isinstance(own, Eagle3Config)
        if eagle3:
            x = state
        else:
            x = self.head.fc(torch.cat((self.norm("embed_norm", embed), self.norm("hidden_norm", state)), -1))
        for i, layer in enumerate(self.layers):
            residual = x
            if eagle3 and i == 0:
                normed = layer.hidden_norm(x)
                residual = normed if self.flags.get("norm_before_residual") else x
                inside = torch.cat((layer.input_layernorm(embed), normed), -1)
            else:
                inside = layer.input_layernorm(x)
            x = residual + self.attend(layer.self_attn, inside, rope, positions, caches, i)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        out = self.norm("norm", x) if self.normed else x
        post = self.feeds_normed()
        return out, out if post else x

    def feeds_normed(self) -> bool:
        own = self.head.config
        if isinstance(own, EagleConfig):
            return own.feedback == "post_norm"
        return bool(self.flags.get("norm_output")) and own.output_norm

    def attend(self, attention: Any, x: Tensor, rope: Any, positions: Tensor, caches: list, layer: int) -> Tensor:
        """transformers' attention over the keys and values so far, with its own projections, norms and rotation."""
        shape = (1, len(x), -1, attention.head_dim)
        q, k, v = (getattr(attention, f"{n}_proj")(x).view(shape) for n in "qkv")
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *rope)
        at = positions
        if caches[layer] is not None:
            k, v = torch.cat((caches[layer][0], k), 2), torch.cat((caches[layer][1], v), 2)
            at = torch.cat((caches[layer][2], positions))
        caches[layer] = (k, v, at)
        seen = at[None] <= positions[:, None]
        if self.windows[layer]:
            seen &= at[None] > positions[:, None] - self.windows[layer]
        groups = attention.num_key_value_groups
        scores = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * attention.scaling
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out = weights @ v.repeat_interleave(groups, 1)
        return attention.o_proj(out.transpose(1, 2).reshape(len(x), -1))
