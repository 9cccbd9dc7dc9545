"""Which layers of the target an EAGLE-3 head reads, in vLLM's count.

vLLM counts the streams between layers: i is what layer i reads (0: the embeddings, L: what the final norm
reads). Several trainers count the outputs of layers instead, one less; nothing in a list of numbers says
which, and a head that is off by one accepts almost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import HeadError
from ..targets.target import Target
from .described import Described
from .intake import Intake
from .options import Options

KEY = "eagle_aux_hidden_state_layer_ids"
#: Other names and places for the list.
_NESTED = (("eagle_config", KEY), ("eagle_config", "layer_ids"))


def default_layers(layers: int) -> list[int]:
    """EAGLE-3's own choice, which all its trainers share: low, middle and high."""
    return [2, layers // 2, layers - 3]


def aux_layers(
    intake: Intake,
    described: Described,
    options: Options,
    target: Target,
    count: int,
    convention: str | None,
    unordered: bool = False,
) -> list[int]:
    """`count` layers, ascending. `convention`: how the producer counts, None if its files do not say.
    `unordered`: its list is a set; otherwise a list that does not ascend is refused.

    Raises:
        HeadError: the list is missing for another count than three, contradicts fc or the target, or
            could be meant either way.
    """
    told = options.aux_ids_convention
    if options.aux_ids is not None:
        for place in (described, *(described.inside(outer) for outer, _ in _NESTED)):
            for key in (KEY, *(inner for _, inner in _NESTED)):
                place.get(key)  # accounted for by what the user says instead
        ids, convention, where = list(options.aux_ids), told or "boundary", "--aux-ids"
    else:
        listed, where = _listed(described)
        if listed is None:
            return _default(intake, target, count)
        ids, convention = listed, told or convention
    if convention is None:
        convention = _decide(ids, target, where)
    if convention == "output":
        intake.note(f"{where} {ids} count outputs of layers; in vLLM's count {[i + 1 for i in ids]}")
        ids = [i + 1 for i in ids]
    _check(ids, target, count, where)
    if ids != sorted(ids) and options.aux_ids is None:  # those the user gives are in the order of fc's columns
        if not unordered:
            raise HeadError(
                f"{where} is {ids}, which is not ascending",
                "vLLM hands the layers over in ascending order, whatever the list says",
                f"Pass the layers in the order in which fc reads them: --aux-ids {','.join(map(str, sorted(ids)))}, "
                f"or {','.join(map(str, ids))}; `vllm-eagle doctor` measures which",
            )
        intake.note(f"{where} is a set; hidden states are collected in the order of the layers")
    intake.note(f"reads the target behind layers {', '.join(map(str, sorted(ids)))} of {target.num_layers}")
    return sorted(ids)


def _listed(described: Described) -> tuple[list[int] | None, str]:
    found = {KEY: described.layers(KEY)}
    found |= {f"{outer}.{inner}": described.inside(outer).layers(inner) for outer, inner in _NESTED}
    said = {where: ids for where, ids in found.items() if ids is not None}
    if len({tuple(ids) for ids in said.values()}) > 1:
        raise HeadError(
            f"config.json lists layers in more than one place: {', '.join(f'{w} {i}' for w, i in said.items())}",
            "One list was expected",
            "Pass the layers it was trained on: --aux-ids",
        )
    return next(((ids, where) for where, ids in said.items()), (None, ""))


def _default(intake: Intake, target: Target, count: int) -> list[int]:
    ids = default_layers(target.num_layers)
    if count != 3 or len(set(ids)) != 3 or ids[0] > ids[1]:
        raise HeadError(
            f"the head reads {count} layers of its target and its config does not say which",
            "Only for three of them is there a usual choice",
            f"Pass --aux-ids ({count} numbers, 0 for the embeddings to {target.num_layers})",
        )
    intake.note(
        f"config.json does not say which layers of the target it reads: {', '.join(map(str, ids))} of "
        f"{target.num_layers}, every trainer's default; --aux-ids overrides it"
    )
    return ids


def _decide(ids: Sequence[int], target: Target, where: str) -> str:
    """A list that only makes sense one way, or a refusal to guess."""
    usual = default_layers(target.num_layers)
    if sorted(ids) == [i - 1 for i in usual]:
        return "output"
    if sorted(ids) == usual or max(ids) == target.num_layers:
        return "boundary"
    if min(ids) == 0:
        raise _both(ids, where, "0 is the embedding or the first layer's output")
    raise _both(ids, where, "both fit")


def _both(ids: Sequence[int], where: str, why: str) -> HeadError:
    return HeadError(
        f"{where} is {list(ids)}, which can count the streams between layers (as vLLM does) or the outputs of "
        f"layers (one less): {why}",
        "A head that reads the wrong layers loads and accepts almost nothing",
        "Pass --aux-ids-convention boundary or output; `vllm-eagle doctor` measures which",
    )


def _check(ids: list[int], target: Target, count: int, where: str) -> None:
    layers = target.num_layers
    if len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) > layers:
        raise HeadError(
            f"{where} names layers {ids} in vLLM's count",
            f"Distinct layers from 0 to {layers} were expected: the target has {layers} layers",
            "Is this head for another target, or --aux-ids-convention the other one?",
        )
    if len(ids) != count:
        raise HeadError(
            f"{where} names {len(ids)} layers {ids}, but fc reads {count}",
            "As many layers as fc has columns for were expected",
            "Pass the layers it was trained on: --aux-ids",
        )
