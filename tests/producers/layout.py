"""What writers share: configs as producers keep them, and ways to put a state dict on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vllm_eagle_plugin.configs import Eagle3Config, EagleConfig, HeadConfig
from vllm_eagle_plugin.reference import ReferenceHead

from ..known_answer.target import LAYERS

State = dict[str, Tensor]
#: Layers of the target for heads whose files name none: enough for EAGLE-3's default choice.
DEEP = 8


@dataclass(frozen=True)
class Fixture:
    """A known-answer head in a producer's layout."""

    #: The reader that must recognise it.
    reader: str
    #: Of `tests.cases`.
    case: str
    #: Writes the head to a folder; may return the producer's own module.
    write: Callable[[ReferenceHead, Path], Any]
    #: What the user has to say; `config` names a config.json (in the folder) that its own files lack.
    options: Mapping[str, Any] = field(default_factory=dict)
    config: str | None = None
    #: Layers of the target.
    layers: int = LAYERS
    #: The fixture that it must come out equal to; that one is served.
    same_as: str | None = None
    #: False: no head of this kind has a known answer.
    exact: bool = True


def state_of(head: ReferenceHead) -> State:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def llama(config: HeadConfig, **more: Any) -> dict[str, Any]:
    """A Llama config of the head's sizes; `more` changes keys, and leaves out those that are `...`."""
    assert isinstance(config, EagleConfig | Eagle3Config)
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size, "hidden_act": "silu",
        "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False, **more,
    }  # fmt: skip
    return {key: value for key, value in described.items() if value is not ...}


def save_config(described: Mapping[str, Any], folder: Path, name: str = "config.json") -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(described))


def save_safetensors(state: State, folder: Path, name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)


def save_bin(state: Mapping[str, Any], folder: Path, name: str = "pytorch_model.bin") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), folder / name)


def save_shards(state: State, folder: Path, kind: str) -> None:
    """Three shards and their index, of `kind` safetensors or bin."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    save = save_safetensors if kind == "safetensors" else save_bin
    names, index = sorted(state), {}
    for i in range(3):
        file = f"{stem}-{i + 1:05d}-of-00003.{kind}"
        part = {name: state[name] for name in names[i::3]}
        save(part, folder, file)
        index |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in state.values())
    (folder / f"{stem}.{kind}.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )


def prefixed(state: State, prefix: str, besides: Iterable[str] = ()) -> State:
    """Names behind `prefix`, except those of `besides`."""
    kept = set(besides)
    return {name if name in kept else prefix + name: tensor for name, tensor in state.items()}


def renamed(state: State, names: Mapping[str, str]) -> State:
    """Names that begin with a key of `names` begin with its value instead."""
    found = {}
    for name, tensor in state.items():
        old = next((key for key in names if name.startswith(key)), "")
        found[names.get(old, "") + name.removeprefix(old)] = tensor
    return found


def as_midlayer(state: State) -> State:
    return renamed(state, {"layers.0.": "midlayer."})


def marked(config: HeadConfig, d2t: Tensor | None) -> Tensor:
    """`t2d`: which of the target's tokens are drafted."""
    mask = torch.zeros(config.vocab_size, dtype=torch.bool)
    ids = torch.arange(config.draft_vocab)
    mask[ids if d2t is None else ids + d2t] = True
    return mask
