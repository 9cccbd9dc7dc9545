"""The RoPE that a head was trained with, as our configs and vLLM's say it: every parameter written out.

transformers, trainers and vLLM fill in what a config leaves out in different ways, and read different parameters.
What is written here leaves nothing to fill in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import HeadError
from .described import Described

DEFAULT_THETA = 10000.0
#: Parameters of each kind besides the base: those it cannot do without, and the others.
_NEEDS = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": (), "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "proportional": (),
}  # fmt: skip
_TAKES = {
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor"),
    "proportional": ("factor",),
}
_LENGTH = "original_max_position_embeddings"
#: Kinds that are another one in text, whose tokens have one position, and names that older configs have.
_SAME = {"mrope": "default", "su": "longrope"}
_MULTIMODAL = ("mrope_section", "mrope_interleaved")
#: Says nothing: factors of other kinds that exporters leave behind, the old name of rope_type.
_IDLE = ("type", "rope_type", "rope_theta", "partial_rotary_factor", "max_position_embeddings")


class Nested(Enum):
    """What a trainer's code makes of RoPE parameters that stand apart for each kind of attention layer."""

    #: Those for layers with a window (speculators).
    SLIDING = "sliding"
    #: None of them: it looks at the top of the object, where nothing is, and so takes plain RoPE at its default base.
    OVERLOOKED = "overlooked"
    UNKNOWN = "unknown"


class Partial(Enum):
    """What a trainer's code makes of `partial_rotary_factor`."""

    #: Nothing: whole heads rotate.
    IGNORED = "ignored"
    #: transformers' Llama: plain RoPE ignores it, other kinds rotate the first part.
    SCALED_ALONE = "scaled alone"
    #: Nobody knows the trainer; vLLM's classes rotate the first part.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RopeMeaning:
    """What a producer's code does that its config does not show."""

    #: The base it trains with, whatever config.json says; None: config.json is right.
    theta: float | None = None
    nested: Nested = Nested.UNKNOWN
    partial: Partial = Partial.UNKNOWN
    #: Parameters that its classes do not read, and kinds that they give the default base whatever is said.
    overlooked: tuple[str, ...] = ()
    based_at_default: tuple[str, ...] = ()
    #: Kinds that its classes have; empty: all of transformers'.
    kinds: tuple[str, ...] = ()


UNKNOWN = RopeMeaning()
#: RoPE classes that came down from SafeAILab's: SpecForge's, TorchSpec's, AngelSlim's.
OWN_CLASSES = RopeMeaning(
    partial=Partial.IGNORED, overlooked=("truncate", "attention_factor"),
    kinds=("default", "linear", "dynamic", "llama3", "yarn"),
)  # fmt: skip
#: transformers' Llama.
TRANSFORMERS = RopeMeaning(partial=Partial.SCALED_ALONE)


class Rope:
    """Reads the RoPE keys of a config; `parameters` is the result, `notes` what was found on the way."""

    def __init__(
        self, described: Described, meaning: RopeMeaning, told: float | None, head_dim: int, length: int
    ) -> None:
        """`told`: the base the user gives; `length`: the longest text that the target reads."""
        self.described, self.meaning, self.told = described, meaning, told
        self.head_dim, self.length = head_dim, length
        self.notes: list[str] = []
        values = self._values()
        given = values.get("rope_type", values.get("type", "default"))
        kind = _SAME.get(given, given) if isinstance(given, str) else given
        if kind not in (meaning.kinds or _NEEDS):
            known = [k for k in (*_NEEDS, *_SAME) if _SAME.get(k, k) in (meaning.kinds or _NEEDS)]
            raise HeadError(
                f"{described.where} says rope_type is {given!r}",
                f"One of {', '.join(known)} was expected: this producer trains no other, or vLLM serves none",
                "Correct config.json",
            )
        fixed = DEFAULT_THETA if given in meaning.based_at_default else meaning.theta
        self.parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": self._theta(values, fixed)}
        self.parameters |= self._checked(kind, values)
        self._rotary(kind, values)
        if kind in ("yarn", "llama3", "longrope"):
            self._original(values)
        {"yarn": self._yarn, "dynamic": self._dynamic, "longrope": self._longrope}.get(kind, lambda: None)()

    def _values(self) -> dict[str, Any]:
        """The parameters, wherever they stand."""
        scaling, parameters = (self.described.inside(key) for key in ("rope_scaling", "rope_parameters"))
        one, other = (
            {k: v for k, v in place.values.items() if k not in ("rope_theta", "type", "rope_type") and v is not None}
            for place in (scaling, parameters)
        )
        if one and other and one != other:
            raise HeadError(
                f"{self.described.where} has rope_scaling {one} and rope_parameters {other}",
                "Both are names for one thing",
                "Remove the one that it was not trained with",
            )
        found = {**parameters.values, **scaling.values}
        layers = {key: value for key, value in found.items() if key.endswith("_attention")}
        return self._flat(layers) if layers else {k: v for k, v in found.items() if v is not None}

    def _flat(self, layers: dict[str, Any]) -> dict[str, Any]:
        """Of parameters for each kind of layer, those that the head's layers were trained with."""
        chosen = layers.get("sliding_attention")
        if self.meaning.nested is Nested.OVERLOOKED:
            self.notes.append(
                "RoPE parameters stand apart for each kind of layer, which its trainer overlooks: plain RoPE"
            )
            return {}
        distinct = [value for i, value in enumerate(layers.values()) if value not in list(layers.values())[:i]]
        if self.meaning.nested is Nested.UNKNOWN and len(distinct) == 1:
            chosen = distinct[0]
        if not isinstance(chosen, dict) or (self.meaning.nested is Nested.UNKNOWN and len(distinct) > 1):
            raise HeadError(
                f"{self.described.where} has RoPE parameters for {', '.join(layers)}",
                "Which of them the head's layers were trained with was expected",
                "Leave that object alone in rope_parameters",
            )
        self.notes.append("RoPE parameters of layers with a window, which its trainer takes")
        return {k: v for k, v in chosen.items() if v is not None}

    def _theta(self, values: dict[str, Any], trained: float | None) -> float:
        """The base; `trained`: what this producer's class has for this kind, whatever is said."""
        says = self.described.number("rope_theta", float)
        nested = Described(values, f"RoPE in {self.described.where}").number("rope_theta", float)
        if None not in (says, nested) and says != nested and self.told is None and trained is None:
            raise HeadError(
                f"config.json says rope_theta is {says:g} and, in rope_parameters, {nested:g}",
                "One RoPE base was expected",
                "Pass the one it was trained with: --rope-theta",
            )
        theta = nested if nested is not None else says
        if self.told is not None:
            return self.told
        if trained is not None:
            if theta not in (None, trained):
                self.notes.append(
                    f"config.json says rope_theta {theta:g}, but this producer trains with {trained:g}, used; "
                    "--rope-theta overrides it"
                )
            return trained
        if theta is None:
            self.notes.append(f"config.json has no rope_theta: {DEFAULT_THETA:g}, this producer's default")
        return DEFAULT_THETA if theta is None else float(theta)

    def _checked(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        """The parameters of `kind` among `values`; raises `HeadError` for others and for nonsense."""
        known = {*_NEEDS[kind], *_TAKES.get(kind, ()), _LENGTH, *_MULTIMODAL, *_IDLE}
        idle = {"factor", "alpha"} if kind == "default" else set()
        odd = sorted(k for k in values if k not in known and not (k in idle and values[k] in (1, 1.0)))
        if odd:
            raise HeadError(
                f"RoPE in {self.described.where} has {', '.join(f'{k} {values[k]!r}' for k in odd)}",
                f"{kind} RoPE has no such parameter, here or in vLLM",
                "Remove it from config.json if the trainer does not read it",
            )
        missing = [k for k in _NEEDS[kind] if k not in values]
        if missing:
            raise HeadError(
                f"{kind} RoPE in {self.described.where} has no {missing[0]}",
                "It cannot do without",
                "Correct config.json",
            )
        found = {k: values[k] for k in (*_NEEDS[kind], *_TAKES.get(kind, ())) if k in values}
        for key in [k for k in found if k in self.meaning.overlooked]:
            self.notes.append(f"RoPE has {key} {found.pop(key)!r}, which this producer's class does not read: left out")
        for key, value in found.items():
            numbers = value if isinstance(value, list) else [value]
            least = 0 if key.startswith("mscale") else 1e-9
            flag = key == "truncate" and isinstance(value, bool)
            if not flag and not all(type(n) in (int, float) and math.isfinite(n) and n >= least for n in numbers):
                raise HeadError(
                    f"{key} of RoPE in {self.described.where} is {value!r}",
                    "Positive numbers were expected",
                    "Correct it",
                )
        return found

    def _rotary(self, kind: str, values: dict[str, Any]) -> None:
        """How much of each attention head rotates, and multimodal sections of it."""
        says = Described(values, f"RoPE in {self.described.where}").number("partial_rotary_factor", float)
        top = self.described.number("partial_rotary_factor", float)
        part = says if says is not None else top
        section = values.get("mrope_section")
        whole = part is None or part == 1 or self.meaning.partial is Partial.IGNORED
        if self.meaning.partial is Partial.SCALED_ALONE and kind == "default":
            whole = True
        if part is not None and part != 1 and kind != "proportional":
            if self.meaning.partial is Partial.UNKNOWN:
                raise HeadError(
                    f"{self.described.where} says partial_rotary_factor is {part:g}",
                    "Most trainers' layers rotate whole heads all the same, and vLLM rotates the part: nothing here says "
                    "which it was",
                    "Remove the key if whole heads were rotated, or pass the trainer with --producer",
                )
            if whole:
                self.notes.append(
                    f"config.json says partial_rotary_factor {part:g}, which vLLM rotates by, but this producer's layers "
                    "rotate whole heads: written so"
                )
        if kind == "proportional" or not whole:
            self.parameters["partial_rotary_factor"] = 1.0 if part is None else part
        if section is not None or values.get("rope_type", values.get("type")) == "mrope":
            self._sections(section, bool(values.get("mrope_interleaved")), 1.0 if part is None else part, whole)

    def _sections(self, section: Any, interleaved: bool, part: float, whole: bool) -> None:
        """Sections for the three positions of image tokens; for text, where the three are one, they change nothing."""
        rotated = self.head_dim // 2 if whole else int(self.head_dim * part) // 2
        fits = isinstance(section, list) and all(type(n) is int and n > 0 for n in section)
        if fits and sum(section) != rotated and rotated % sum(section) == 0:
            section = [n * (rotated // sum(section)) for n in section]
            self.notes.append(f"multimodal RoPE: sections scaled to {section}, as whole heads rotate")
        if fits and sum(section) == rotated and self.parameters["rope_type"] in ("default", "yarn"):
            self.parameters |= {"mrope_section": section, "mrope_interleaved": interleaved}
            return
        self.notes.append("multimodal RoPE read as plain RoPE, which it is for text")

    def _original(self, values: dict[str, Any]) -> None:
        """The context that the kind scales from, as transformers finds it."""
        nested = Described(values, f"RoPE in {self.described.where}")
        found = (
            self.described.number(_LENGTH) or nested.number(_LENGTH) or self.described.number("max_position_embeddings")
        )
        if found is None:
            raise HeadError(
                f"{self.parameters['rope_type']} RoPE in {self.described.where} does not say {_LENGTH}",
                "It scales from that length",
                "Add it to config.json",
            )
        self.parameters[_LENGTH] = found

    def _yarn(self) -> None:
        rope = self.parameters
        if "factor" not in rope:
            rope["factor"] = self._ratio()
        one, other = rope.pop("mscale", 1) or 1, rope.pop("mscale_all_dim", 0)
        if not other and one != 1:
            raise HeadError(
                f"RoPE in {self.described.where} has mscale {one} and no mscale_all_dim",
                "Trainers differ in what that scales cos and sin by",
                "Say the factor itself: attention_factor",
            )
        grown = 0.1 * math.log(max(1.0, rope["factor"]))
        rope.setdefault("attention_factor", (1 + grown * one) / (1 + grown * other))
        rope |= {key: rope.get(key, value) for key, value in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True))}

    def _ratio(self) -> float:
        longest = self.described.number("max_position_embeddings") or self.parameters[_LENGTH]
        return longest / self.parameters[_LENGTH]

    def _dynamic(self) -> None:
        """Plain RoPE up to the length trained for; behind it the base grows with every text."""
        own = self.described.number("max_position_embeddings") or 2048
        if own < self.length:
            raise HeadError(
                f"{self.described.where} says dynamic RoPE and max_position_embeddings {own}, and the target reads {self.length}",
                "vLLM cannot change the base while a text grows, as dynamic RoPE does behind that length",
                "If the head never saw longer texts, plain RoPE is the same: remove rope_scaling from config.json",
            )
        self.notes.append(f"dynamic RoPE is plain up to {own} positions, which are all the target has: written so")
        self.parameters = {"rope_type": "default", "rope_theta": self.parameters["rope_theta"]} | {
            k: v for k, v in self.parameters.items() if k in (*_MULTIMODAL, "partial_rotary_factor")
        }

    def _longrope(self) -> None:
        rope, original = self.parameters, self.parameters[_LENGTH]
        if original < self.length:
            raise HeadError(
                f"{self.described.where} says LongRoPE from {original} positions, and the target reads {self.length}",
                "vLLM cannot go over from short to long factors while a text grows",
                f"Train it with plain RoPE, or convert it for a target whose max_position_embeddings is {original}",
            )
        factor = rope.setdefault("factor", self._ratio())
        rope.setdefault("attention_factor", math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
