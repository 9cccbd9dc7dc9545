"""Quantised heads: read as the weights they stand for, written as the bits they are where stock vLLM serves them.

Every scheme keeps a linear layer as several tensors beside each other. Readers see one dense weight, whose values are
computed from them; the route puts the tensors themselves back, with the config that says how vLLM reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import HeadError
from ..targets.stored import Stored
from .described import Described, read_config
from .source import Source

#: What stands for a weight, and what goes with it; the last two belong to the keys and values of attention.
_WEIGHTS = ("weight_packed", "qweight", "weight")
_COMPANIONS = (
    "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point", "weight_shape", "weight_g_idx",
    "input_scale", "input_zero_point", "qzeros", "scales", "g_idx", "k_scale", "v_scale",
)  # fmt: skip
#: The way out for a quantised head that cannot be served so.
DEQUANTISE = "Pass --dtype bfloat16 to write it with dense weights"
#: Rows and columns that one scale of block-wise FP8 covers.
_BLOCK = 128
#: The order in which AWQ packs eight columns into 32 bits.
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class Quantised(Stored):
    """A dense weight [out, in] that is stored as `parts`, by what is behind the module's name."""

    parts: Mapping[str, Stored] = field(default_factory=dict)


def is_companion(name: str) -> bool:
    return name.rpartition(".")[2] in _COMPANIONS or name.endswith((".weight_packed", ".qweight"))


def quantisation_of(source: Source) -> dict[str, Any]:
    """What says how its weights are quantised, as vLLM reads it from config.json; empty where nothing does."""
    said = source.config.get("quantization_config")
    if said is not None:
        return dict(source.config.inside("quantization_config").values)
    folder = source.path if source.path.is_dir() else source.path.parent
    file = folder / "hf_quant_config.json"
    legacy = read_config(file) if file.is_file() else {}
    return {"quant_method": "modelopt", **legacy} if "quantization" in legacy else {}


def densified(source: Source) -> Source:
    """`source` with one dense weight where a module is quantised; as it is where none is.

    Raises:
        HeadError: its tensors are quantised in a way that is not known here, or nothing says how.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in source.tensors:
        module, _, part = name.rpartition(".")
        if is_companion(name):
            modules.setdefault(module, {})[part] = name
    for module, parts in modules.items():
        parts |= {"weight": f"{module}.weight"} if f"{module}.weight" in source.tensors else {}
    if not modules:
        return source
    said = Described(quantisation_of(source), "quantization_config")
    if not said.values:
        raise HeadError(
            f"the head is quantised ({next(iter(next(iter(modules.values())).values()))}), and nothing says how",
            "A quantization_config in config.json, or hf_quant_config.json beside it, was expected",
            "Copy the whole folder, or export the head before quantisation",
        )
    tensors, names = dict(source.tensors), dict(source.stored_names)
    for module, parts in modules.items():
        stored = {part: source.tensors[name] for part, name in parts.items()}
        for name in parts.values():
            del tensors[name]
        tensors[f"{module}.weight"] = _dense(module, stored, said)
        original = next(parts[w] for w in _WEIGHTS if w in parts)
        names[f"{module}.weight"] = source.stored_names.get(original, original)
    note = f"{len(modules)} weights are quantised ({said.get('quant_method')}, {said.get('quant_algo') or said.get('format') or f'{_bits(said)} bits'})"
    return replace(source, tensors=tensors, stored_names=names, notes=(*source.notes, note))


def _dense(module: str, parts: dict[str, Stored], said: Described) -> Quantised:
    def load() -> Tensor:
        try:
            return _values({name: part.load() for name, part in parts.items()}, said).reshape(shape)
        except (RuntimeError, ValueError, IndexError) as error:
            raise HeadError(
                f"the tensors of {module} do not fit each other: {str(error).splitlines()[0][:200]}",
                "Scales and packed integers of one layer were expected",
                "Quantise the head again, or export it before quantisation",
            ) from None

    shape: tuple[int, ...]
    if not any(name in parts for name in _WEIGHTS) or "weight_scale_2" in parts:
        raise HeadError(
            f"{module} is stored as {', '.join(parts)}",
            "FP8, INT8, packed integers of compressed-tensors, GPTQ or AWQ were expected",
            "Export the head before quantisation: heads are small",
        )
    if "qweight" in parts:
        _expect(module, parts, "qweight", "scales", "qzeros")
        out, packed = parts["scales"].shape[1], parts["qweight"].shape
        shape = (out, packed[0] if packed[1] != out else packed[0] * 32 // _bits(said))
    elif "weight_packed" in parts:
        _expect(module, parts, "weight_packed", "weight_scale", "weight_shape")
        shape = tuple(int(size) for size in parts["weight_shape"].load().tolist())
    else:
        _expect(module, parts, "weight")
        shape = parts["weight"].shape
    return Quantised(shape, torch.float32, load, None, parts)


def _expect(module: str, parts: Mapping[str, Stored], matrix: str, *others: str) -> None:
    missing = [name for name in others if name not in parts]
    flat = [
        name
        for name in (matrix, *others)
        if name in parts and name in ("scales", matrix) and len(parts[name].shape) != 2
    ]
    if missing or flat:
        raise HeadError(
            f"{module}.{(missing or flat)[0]} is {'missing' if missing else 'no matrix'}, and {module} is quantised",
            f"{', '.join((matrix, *others))} were expected beside each other",
            "Export the head again, whole",
        )


def _bits(said: Described) -> int:
    groups = said.inside("config_groups")
    first = next(iter(groups.values), None)
    grouped = None if first is None else groups.inside(first).inside("weights").number("num_bits")
    return int(grouped or said.number("bits") or said.number("w_bit") or 8)


def _values(p: dict[str, Tensor], said: Described) -> Tensor:
    """The dense weight [out, in] in fp32."""
    bits = _bits(said)
    if "weight_scale_inv" in p:
        scale = p["weight_scale_inv"].float().repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
        return p["weight"].float() * scale[: p["weight"].shape[0], : p["weight"].shape[1]]
    if "qweight" in p and said.get("quant_method") == "awq":
        order = torch.tensor(_AWQ)
        ints, zeros = (_unpack(p[n], bits).unflatten(1, (-1, 8))[:, :, order].flatten(1) for n in ("qweight", "qzeros"))
        groups = torch.arange(ints.shape[0]) // (ints.shape[0] // zeros.shape[0])
        return ((ints - zeros[groups]) * p["scales"].float()[groups]).T
    if "qweight" in p:
        ints, zeros = _unpack(p["qweight"].T.contiguous(), bits).T, _unpack(p["qzeros"], bits)
        plus = 0 if said.get("checkpoint_format") == "gptq_v2" else 1
        groups = p["g_idx"].long() if "g_idx" in p else torch.arange(len(ints)) // (len(ints) // len(zeros))
        return ((ints - zeros[groups] - plus) * p["scales"].float()[groups]).T
    if "weight_packed" in p:
        rows, columns = p["weight_shape"].tolist()
        ints = _unpack(p["weight_packed"], bits)[:rows, :columns] - 2 ** (bits - 1)
        if "weight_zero_point" in p:
            raise HeadError(
                "a packed weight has zero points", "Symmetric integers were expected", "Export it unquantised"
            )
    else:
        ints = p["weight"].float()
    scale = p["weight_scale"].float()
    if scale.dim() == 2 and scale.shape[1] > 1:  # groups of columns
        scale = scale.repeat_interleave(ints.shape[1] // scale.shape[1], 1)
    elif scale.dim() == 1 and scale.numel() > 1:
        scale = scale[:, None]
    zero = p["weight_zero_point"].float().reshape(-1, 1) if "weight_zero_point" in p else 0.0
    return (ints - zero) * scale


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Integers of `bits` from the columns of a matrix of 32 bits, low ones first."""
    shifts = torch.arange(0, 32, bits)
    return ((packed.long()[:, :, None] >> shifts) & (2**bits - 1)).flatten(1).float()


def written_parts(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors as they are stored: quantised weights as their parts, bit by bit."""
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Quantised):
            module = name.removesuffix(".weight")
            found |= {f"{module}.{part}": stored for part, stored in tensor.parts.items()}
        else:
            found[name] = tensor
    return found


def check_whole(tensors: Mapping[str, Stored], quantisation: Mapping[str, Any]) -> None:
    """Refuse a head of which stock vLLM would quantise other weights than are quantised.

    Raises:
        HeadError: the reading has changed quantised weights, or they are not those that vLLM takes for quantised.
    """
    skipped = str([v for k, v in quantisation.items() if k != "config_groups"])
    dense = [
        name for name, tensor in tensors.items()
        if not isinstance(tensor, Quantised) and (name.endswith("_proj.weight") or (name == "fc.weight" and "fc" not in skipped))
    ]  # fmt: skip
    if dense:
        raise HeadError(
            f"{dense[0]} is not quantised, or not as it is stored, and other weights of the head are",
            "vLLM takes fc and all projections of a quantised head for quantised",
            DEQUANTISE,
        )
