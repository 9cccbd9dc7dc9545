"""LoRA adapters (arXiv 2106.09685) as PEFT saves them: merged into the head on request, never left out without a word.

One that lies beside a head either adapts the head (NeMo Automodel) or the target that the head was trained with
(ModelOpt's co-training); its modules' names and shapes tell which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import HeadError, UsageError
from ..targets.hub import download
from ..targets.stored import Stored
from ..targets.tensor_files import read_tensors
from .described import Described, read_config

if TYPE_CHECKING:
    from .source import Source

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
#: What `--adapter` says for an adapter that is to be left out.
NONE = "none"
_PART = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight$")
#: Ways to begin that leave other base weights behind than the head's own (PEFT's `init_lora_weights`).
_OWN_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Adapter:
    """The change of a module's weight is `scale * B @ A`, by the module's name in the adapted model."""

    file: Path
    config: Described
    modules: Mapping[str, tuple[Stored, Stored]]

    def scale(self, module: str) -> float:
        own = self.config.inside("alpha_pattern")
        named = next((key for key in own.values if f".{module}".endswith(f".{key}")), None)
        alpha = self.config.number("lora_alpha", float) if named is None else own.number(named, float)
        rank = self.modules[module][0].shape[0]
        return float(alpha) / (math.sqrt(rank) if self.config.flag("use_rslora") else rank)


def is_lora(name: str) -> bool:
    return ".lora_" in name or name.startswith("lora_")


def adapter_file(folder: Path) -> Path | None:
    """The weights of an adapter in `folder`, where there is one."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def refuse_alone(path: Path) -> None:
    """An adapter without the head that it changes."""
    folder = path if path.is_dir() else path.parent
    config = Described(read_config(folder / CONFIG)) if (folder / CONFIG).is_file() else Described(None)
    base = config.text("base_model_name_or_path") or "DRAFT"
    raise HeadError(
        f"{path} is a LoRA adapter: it changes a draft head, and holds none",
        f"The head that it adapts was expected{f' ({base})' if base != 'DRAFT' else ''}, with the adapter to merge into it",
        f"Convert the head, and name the adapter: vllm-eagle convert {base} --adapter {folder} --target TARGET -o OUT",
    )


def refuse_unmerged(path: Path, names: list[str]) -> None:
    """A state dict of a model that PEFT has wrapped: neither its base nor its adapters are the head."""
    raise HeadError(
        f"{path} holds a head together with unmerged LoRA weights ({names[0]} and {len(names) - 1} more)",
        "One weight for each module was expected",
        "Save it after model.merge_and_unload(), or save the adapter apart (model.save_pretrained) and pass it with "
        "--adapter",
    )


def adapted(source: Source, told: str | None) -> Source:
    """`source` with the adapter that the user names merged into it, or as it is with `none`.

    Raises:
        HeadError: an adapter lies beside the head and the user does not say what to do, or it does not fit.
    """
    if told is None:
        if source.adapter is not None:
            raise _beside(source, read_adapter(source.adapter))
        return source
    if told == NONE:
        if source.adapter is None:
            raise UsageError(
                f"--adapter {NONE} was given", f"{source.path} has no LoRA adapter beside it", "Leave the option out"
            )
        left = f"{source.adapter.name} beside it is left out (--adapter {NONE})"
        return replace(source, notes=(*source.notes, left))
    return _merge(source, read_adapter(_located(told)))


def adapter_files(told: str | None) -> tuple[Path, ...]:
    """What `--adapter` adds to the files that a conversion reads."""
    if told is None or told == NONE:
        return ()
    file = read_adapter(_located(told)).file
    return file, file.parent / CONFIG


def _located(told: str) -> Path:
    on_hub = not Path(told).exists() and told.count("/") == 1 and not told.startswith((".", "/", "~"))
    return download(told, [CONFIG, *_FILES]) if on_hub else Path(told)


def read_adapter(path: Path) -> Adapter:
    """An adapter in PEFT's layout, from its folder or its file of weights."""
    file = path if path.is_file() else adapter_file(path)
    if file is None or not (file.parent / CONFIG).is_file():
        raise HeadError(
            f"{path} holds no LoRA adapter",
            f"{_FILES[0]} and {CONFIG} were expected there",
            "Pass the folder that PEFT saved it to",
        )
    config = Described(read_config(file.parent / CONFIG), CONFIG)
    tensors = read_tensors(file)
    parts: dict[str, dict[str, Stored]] = {}
    odd = [name for name in tensors if not _PART.match(name)]
    for name, tensor in tensors.items():
        if (found := _PART.match(name)) is not None:
            parts.setdefault(found["module"], {})[found["part"]] = tensor
    wrong = [*_faults(config), *(f"it has {name}" for name in odd)]
    wrong += [f"{module} has only one of lora_A and lora_B" for module, p in parts.items() if len(p) != 2]
    if wrong or not parts:
        raise HeadError(
            f"{file} cannot be merged here: {wrong[0] if wrong else 'it holds nothing'}",
            "A plain LoRA adapter was expected: lora_A and lora_B of some linear layers",
            "Merge it where it was trained (model.merge_and_unload()) and convert the result",
        )
    return Adapter(file, config, {module: (p["A"], p["B"]) for module, p in parts.items()})


def _faults(config: Described) -> Iterator[str]:
    """What in an adapter's config asks for more than `scale * B @ A`."""
    if config.get("peft_type") != "LORA":
        yield f"its peft_type is {config.get('peft_type')!r}"
    for flag, what in (("use_dora", "it is of DoRA"), ("fan_in_fan_out", "its weights are transposed")):
        if config.flag(flag):
            yield what
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_OWN_BASE):
        yield f"it changed its base's weights at the start ({start})"
    if config.number("lora_alpha", float) is None:
        yield "it has no lora_alpha"
    # PEFT takes the keys of a pattern for regular expressions; what people write are names of modules.
    if odd := [key for key in config.inside("alpha_pattern").values if not re.fullmatch(r"[\w.]+", key)]:
        yield f"alpha_pattern has {odd[0]!r}"


def _places(source: Source, adapter: Adapter) -> dict[str, str]:
    """Modules of the adapter: the tensor of the head that each changes, where there is one of that shape."""
    found = {}
    for module, (a, b) in adapter.modules.items():
        names = [n for n in source.tensors if f".{module}.weight".endswith(f".{n}")]
        if names and source.tensors[names[0]].shape == (b.shape[0], a.shape[1]) and a.shape[0] == b.shape[1]:
            found[module] = max(names, key=len)
    return found


def _beside(source: Source, adapter: Adapter) -> HeadError:
    lost = [module for module in adapter.modules if module not in _places(source, adapter)]
    if not lost:
        return HeadError(
            f"a LoRA adapter for this head lies beside it ({adapter.file.name}, {len(adapter.modules)} modules), and its "
            "weights are not adapted",
            "Converting the head alone would leave out what the adapter was trained for",
            f"Pass --adapter {adapter.file.parent} to merge it, or --adapter {NONE} for the head without it",
        )
    return HeadError(
        f"a LoRA adapter of another model lies beside the head ({adapter.file.name}; the head has no "
        f"{lost[0]} of that shape)",
        "Heads that were trained together with an adapter of their target draft for the adapted target",
        f"Merge the adapter into the target, name that with --target, and pass --adapter {NONE}",
    )


def _merge(source: Source, adapter: Adapter) -> Source:
    places = _places(source, adapter)
    lost = [module for module in adapter.modules if module not in places]
    if lost:
        a, b = adapter.modules[lost[0]]
        raise HeadError(
            f"the adapter {adapter.file} changes {lost[0]} [{b.shape[0]}, {a.shape[1]}], which the head does not have",
            "Each of its modules was expected in the head, with its shape",
            f"Pass the adapter of this head; if it adapts the target, merge it there and pass --adapter {NONE}",
        )
    tensors = dict(source.tensors)
    for module, name in places.items():
        tensors[name] = _merged(tensors[name], *adapter.modules[module], adapter.scale(module))
    note = f"LoRA adapter {adapter.file.name} merged into {len(places)} weights"
    return replace(source, tensors=tensors, notes=(*source.notes, note))


def _merged(weight: Stored, a: Stored, b: Stored, scale: float) -> Stored:
    def load() -> torch.Tensor:
        total, rows, columns = weight.load().float(), a.load().float(), b.load().float()
        for i in range(rows.shape[0]):  # not as one product, whose last bits depend on the number of threads
            total = total.addr(columns[:, i], rows[i], alpha=scale)
        return total.to(weight.dtype)

    return Stored(weight.shape, weight.dtype, load)
