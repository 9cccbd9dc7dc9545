"""Which files of a folder are the head: its weights, its config, and what trainers put beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import HeadError
from ..targets.tensor_files import TENSOR_SUFFIXES, read_tensors
from ..targets.weights import weight_map
from .adapter import adapter_file, refuse_alone
from .described import read_config

#: Files beside weights that hold something else, by the start of their names.
_NOT_WEIGHTS = (
    "config.", "generation_config.", "tokenizer", "special_tokens_map.", "vocab.", "added_tokens.", "training_args.",
    "optimizer", "scheduler", "scaler", "random_states", "rng_state", "training_state_rank", "trainer_state",
    "zero_to_fp32", "hf_quant_config", "preprocessor_config", "chat_template", "modelopt_state", "adapter_config",
    "adapter_model.", "merges.", "latest", "params.json",
)  # fmt: skip
_NOT_WEIGHTS_ENDS = ("_optim_states.pt", ".index.json", "optimizer_state_dict.pt", "scheduler_state_dict.pt")
#: Side files that decide what a head drafts: `eagle_meta.pt`, a vocabulary mapping, a hot-token map.
_SIDE = (
    "eagle_meta.pt", "eagle3_meta.pt", "*vocab_mapping*.pt", "vocab_mapping/*.pt", "*token_map*.pt", "*hot_token*.pt",
    "freq_*.pt",
)  # fmt: skip
#: Where trainers keep the model inside a checkpoint, most finished first.
_INSIDE = ("model/consolidated", "consolidated", "model", "pytorch_model")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Files:
    """Files of one head; `notes` say what was chosen where there was a choice."""

    weights: tuple[Path, ...]
    config: Path | None
    side: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    #: Weights of a LoRA adapter that lies beside them.
    adapter: Path | None = None


def find_files(path: Path, config: Path | None = None) -> Files:
    """The files of the head at `path`: one file, or a folder as a trainer leaves it.

    Raises:
        HeadError: nothing there, more than one head, sharded states that must be merged first, or links
            and index entries that lead out of the folder.
    """
    if not path.exists():
        raise HeadError(
            f"{path} does not exist", "A folder or a file with a trained head was expected", "Check the path"
        )
    if config is not None and not config.is_file():
        raise HeadError(f"{config} does not exist", "The head's config.json was expected", "Check --config")
    if path.is_file():
        if path.suffix not in TENSOR_SUFFIXES:
            raise HeadError(
                f"{path.name} is of an unknown kind",
                f"One of {', '.join(TENSOR_SUFFIXES)} was expected",
                "Export the head as safetensors, or with torch.save",
            )
        return Files((path,), config or _existing(path.parent / "config.json"), _side_files(path.parent, path))
    return _find_in(path, config, path)


def _find_in(folder: Path, config: Path | None, root: Path) -> Files:
    weights, notes = _weights(folder)
    inner = [folder / name for name in _INSIDE if (folder / name).is_dir()]
    if weights and not (inner and all(f.suffix == ".json" for f in weights)):  # a trainer's losses.json
        for file in weights:
            check_inside(file, root)
        found = config or _existing(folder / "config.json") or _existing(root / "config.json")
        if found is not None and config is None:
            check_inside(found, root)
        side = dict.fromkeys((*_side_files(folder), *_side_files(root)))
        beside = adapter_file(folder) or adapter_file(root)
        if beside is not None:
            check_inside(beside, root)
        return Files(weights, found, tuple(s for s in side if s not in weights), tuple(notes), beside)
    _refuse_shards(folder)
    if adapter_file(folder) is not None:
        refuse_alone(folder)
    inner = inner or _deepspeed(folder)
    if inner:
        return _find_in(inner[0], config, root)
    runs = [sub.name for sub in sorted(folder.iterdir()) if sub.is_dir() and _weights(sub)[0]]
    raise HeadError(
        f"{root} holds no weights" + (f" itself, but these folders in it do: {', '.join(runs[:6])}" if runs else ""),
        f"A file ending in one of {', '.join(TENSOR_SUFFIXES)} was expected",
        "Pass one of them" if runs else "Is it the folder of the head, and was it downloaded whole?",
    )


def _weights(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    for name in _INDEXES:
        if (folder / name).is_file():
            named = weight_map(folder / name)
            return tuple(folder / file for file in sorted(set(named.values()))), []
    side = set(_side_files(folder))
    kinds = {}
    for suffix in TENSOR_SUFFIXES:
        files = [f for f in sorted(folder.glob(f"*{suffix}")) if _may_be_weights(f) and f not in side]
        if files:
            kinds[suffix] = tuple(files)
    if ".json" in kinds and len(kinds) > 1:
        del kinds[".json"]
    if len(kinds) > 1 and [f.name for f in kinds.get(".pt", ())] == ["training_state.pt"]:
        del kinds[".pt"]  # the trainer's own state beside an exported head
    if not kinds:
        return (), []
    chosen = next(iter(kinds.values()))
    stale = [f for suffix, files in kinds.items() if suffix != next(iter(kinds)) for f in files]
    return chosen, _compare_copies(chosen, stale)


def _compare_copies(chosen: tuple[Path, ...], others: list[Path]) -> list[str]:
    """Weights in a second format beside the first: fine if equal, and otherwise nobody's guess."""
    known = {name: tensor for file in chosen for name, tensor in read_tensors(file).items()}
    for file in others:
        copy = read_tensors(file)
        same = set(copy) <= set(known) and all(
            t.shape == known[n].shape and torch.equal(t.load(), known[n].load().to(t.dtype)) for n, t in copy.items()
        )
        if not same:
            newer = max((*chosen, file), key=lambda f: f.stat().st_mtime)
            raise HeadError(
                f"{', '.join(f.name for f in chosen)} and {file.name} lie side by side and hold different weights; "
                f"{newer.name} is the newer",
                "One set of weights was expected: servers read the first without a word",
                "Pass the one to convert as HEAD, or remove the stale one",
            )
    return [f"{file.name} holds the same weights as {chosen[0].name}" for file in others]


def _may_be_weights(file: Path) -> bool:
    return not file.name.startswith((*_NOT_WEIGHTS, ".")) and not file.name.endswith(_NOT_WEIGHTS_ENDS)


def _side_files(folder: Path, weights: Path | None = None) -> tuple[Path, ...]:
    return tuple(f for pattern in _SIDE for f in sorted(folder.glob(pattern)) if f != weights)


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None


def _refuse_shards(folder: Path) -> None:
    """Trainers' sharded states are pieces of tensors; the way to whole ones is theirs."""
    if (folder / ".metadata").exists() or any(folder.glob("*.distcp")):
        raise HeadError(
            f"{folder} is a sharded checkpoint of torch.distributed",
            "Whole tensors were expected",
            "Merge it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER head.pt",
        )
    if any(folder.glob("*zero_pp_rank_*")) or any(folder.glob("global_step*/*zero_pp_rank_*_model_states.pt")):
        raise HeadError(
            f"{folder} is a DeepSpeed ZeRO-3 checkpoint: each file has a piece of every tensor",
            "Whole tensors were expected",
            "Merge it first: python zero_to_fp32.py FOLDER OUT (the script lies in the checkpoint)",
        )


def _deepspeed(folder: Path) -> list[Path]:
    """The step that DeepSpeed's `latest` names, or the only one."""
    steps = [s for s in sorted(folder.glob("global_step*")) if s.is_dir()]
    latest = folder / "latest"
    if latest.is_file():
        named = folder / latest.read_text(encoding="utf-8", errors="replace").strip()
        steps = [s for s in steps if s == named] or steps
    return steps if len(steps) == 1 else []


def check_inside(file: Path, root: Path) -> None:
    """Refuse links that lead out of a head's folder, except into the hub cache that the folder is part of."""
    target, home = file.resolve(), root.resolve()
    blobs = home.parent.parent / "blobs"
    if not (target.is_relative_to(home) or (home.parent.name == "snapshots" and target.is_relative_to(blobs))):
        raise HeadError(
            f"{file.name} is a link to {target}, outside the head's folder",
            "Files of the head were expected in its own folder",
            "Pass that file as HEAD if it is the one you mean",
        )


def config_of(files: Files) -> dict | None:
    """The head's config, or None where there is none."""
    return read_config(files.config) if files.config is not None else None
