"""What people hold before an export: trainers' folders, wrapped and prefixed state dicts, shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vllm_eagle_plugin.reference import ReferenceHead

from .eagle1 import with_embedding
from .layout import Fixture, llama, prefixed, save_bin, save_config, save_safetensors, save_shards, state_of
from .wrappers import lm_head_of

_CONFIG = "given/config.json"


def accelerate(head: ReferenceHead, folder: Path, kind: str) -> None:
    """`state_<epoch>`: the head, the frozen lm_head as a second model, the optimiser, no config."""
    state = prefixed(with_embedding(head, state_of(head)), "module.")
    if kind == "bin":
        save_bin(state, folder)
        save_bin({"weight": lm_head_of(head)}, folder, "pytorch_model_1.bin")
    else:
        save_safetensors(state, folder)
        save_safetensors({"weight": lm_head_of(head)}, folder, "model_1.safetensors")
    torch.save({"state": {}}, folder / "optimizer.bin")
    torch.save({"last_epoch": 1}, folder / "scheduler.bin")
    torch.save({"random_state": (3, (1, 2), None)}, folder / "random_states_0.pkl")
    save_config(llama(head.config), folder, _CONFIG)


def deepspeed(head: ReferenceHead, folder: Path) -> None:
    """A ZeRO-2 checkpoint: whole weights in one rank's states, the optimiser's shards beside them."""
    for step in ("global_step10", "global_step20"):
        inner = folder / step
        inner.mkdir(parents=True)
        state = OrderedDict(with_embedding(head, state_of(head)))
        if step == "global_step10":
            state = OrderedDict({name: tensor + 1 for name, tensor in state.items()})
        states = {
            "module": state, "buffer_names": [], "optimizer": None, "param_shapes": [OrderedDict(x=torch.Size([4]))],
            "frozen_param_shapes": None, "lr_scheduler": None, "global_steps": 10, "ds_version": "0.14.0",
            "ds_config": {"zero_optimization": {"stage": 2}}, "dp_world_size": 2, "mp_world_size": 1,
        }  # fmt: skip
        torch.save(states, inner / "mp_rank_00_model_states.pt")
        for rank in range(2):
            torch.save({"optimizer_state_dict": {}}, inner / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text("global_step20")
    (folder / "zero_to_fp32.py").write_text("# merges shards\n")
    save_config(llama(head.config), folder, _CONFIG)


def wrapped(head: ReferenceHead, folder: Path) -> None:
    """A trainer's `{"state_dict": ...}` of a compiled, wrapped module, with numbers beside it."""
    state = prefixed(state_of(head), "_orig_mod.module.")
    torch.save({"state_dict": state, "epoch": 3, "best_loss": 0.5, "args": {"lr": 1e-4}}, folder / "last.pt")
    save_config(llama(head.config), folder)


def inside(head: ReferenceHead, folder: Path, prefix: str) -> None:
    """The whole model that the head was trained in."""
    base = {f"base_model.model.layers.{i}.mlp.up_proj.weight": torch.rand(4, 4) for i in range(3)}
    base |= {"base_model.lm_head.weight": torch.rand(4, 4)}
    save_safetensors({**base, **prefixed(state_of(head), prefix)}, folder)
    save_config(llama(head.config), folder)


def shards(head: ReferenceHead, folder: Path, kind: str) -> None:
    save_shards(with_embedding(head, state_of(head)), folder, kind)
    save_config(llama(head.config), folder)


def converted(head: ReferenceHead, folder: Path) -> None:
    """What this package writes itself."""
    save_safetensors(state_of(head), folder)
    provenance = {"converter": "vllm-eagle-plugin 0.1.0", "producer": "safeailab-eagle", "method": head.config.method}
    save_config({**head.config.to_dict(), "max_position_embeddings": 2048, "eagle_provenance": provenance}, folder)


def _of(write: Callable[[ReferenceHead, Path], None], config: str | None = None) -> Fixture:
    return Fixture("safeailab-eagle", "eagle-fc-bias", write, config=config, same_as="safeailab-eagle")


FIXTURES = {
    "converted": Fixture("converted", "eagle-fc-bias", converted, same_as="safeailab-eagle"),
    "accelerate folder, bin": _of(partial(accelerate, kind="bin"), _CONFIG),
    "accelerate folder, safetensors": _of(partial(accelerate, kind="safetensors"), _CONFIG),
    "DeepSpeed folder": _of(deepspeed, _CONFIG),
    "wrapped state dict": _of(wrapped),
    "whole model, draft_model.": _of(partial(inside, prefix="draft_model.")),
    "whole model, eagle_module.": _of(partial(inside, prefix="model.eagle_module.")),
    "whole model, ea_layer.": _of(partial(inside, prefix="ea_layer.")),
    "sharded safetensors": _of(partial(shards, kind="safetensors")),
    "sharded bin": _of(partial(shards, kind="bin")),
}
