"""A recipe: everything that decides what a training run makes, as one short TOML file."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import UsageError

FAMILIES = ("feature", "surgery", "projection", "eagle1", "eagle3", "medusa")
#: Those with an lm_head of their own; the others use the target's.
_OWN_LM_HEAD = ("projection", "eagle3")


@dataclass(frozen=True)
class Head:
    """What is built. A family reads what concerns it; the rest must be left out of its recipe."""

    #: Blocks of the MLP (feature, surgery), or of each head (medusa).
    blocks: int = 3
    #: Output width of the projection; 0: the target's hidden size, the only width that chains.
    width: int = 0
    #: Tokens the head can draft; 0: all. eagle3 takes the most frequent ones, projection the first ids
    #: (its layout has no token map).
    draft_vocab_size: int = 0
    #: Layers of the target that eagle3 fuses, counted as vLLM does; empty: low, middle and high.
    layer_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loss:
    """Weights of the terms; each is averaged over the answer tokens of a step."""

    #: Against the target's whole distribution (up to the target's own entropy, KL divergence).
    cross_entropy: float = 1.0
    #: Between predicted and true feature, averaged over its width: smooth L1 as EAGLE has it, or squared.
    smooth_l1: float = 0.0
    mse: float = 0.0
    #: Squared difference of the logits, averaged over the vocabulary.
    logit_mse: float = 0.0
    #: Cross-entropy and logits over this many of the most frequent tokens and a sample of the others, for
    #: heads that use the target's lm_head; 0: over all. See `vocabulary.py`.
    vocabulary: int = 0


@dataclass(frozen=True)
class Unroll:
    """Training-time test (EAGLE-3): steps of the chain, and the weight of each relative to the one before.

    A medusa head has as many heads as there are steps.
    """

    steps: int = 1
    decay: float = 0.8


@dataclass(frozen=True)
class Optimiser:
    """Linear warm-up and a cosine down to `final` times the peak rate.

    Everything is trained by AdamW, but for the inner matrices where `muon` is true: these by Muon, with updates of
    the size that AdamW's are.
    """

    learning_rate: float = 1e-3
    muon: bool = False
    warmup: float = 0.03
    final: float = 0.05
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 0.5


@dataclass(frozen=True)
class Batch:
    """Tokens (padding included) of one optimiser step, and in how many parts they are computed.

    Processes share the parts of a step, so `micro_batches` must be a multiple of their number; the result
    is the same for any number of them.
    """

    tokens: int = 1024
    micro_batches: int = 2
    #: Conversations are cut to this many tokens.
    length: int = 512


@dataclass(frozen=True)
class Recipe:
    """See the files in `training/recipes/`."""

    family: str
    name: str = "recipe"
    epochs: int = 1
    #: bf16 (the target and the matrix products of the head; weights stay fp32) or fp32.
    precision: str = "bf16"
    #: Half width of the uniform noise on the target's features (EAGLE trains with 0.1).
    feature_noise: float = 0.0
    seed: int = 0
    #: Greedy conversations kept out of training, to measure acceptance on, and steps between measurements.
    held_out: int = 32
    evaluate_every: int = 200
    #: Stop after so many measurements without a better one; 0: go on to the end.
    patience: int = 0
    head: Head = field(default_factory=Head)
    loss: Loss = field(default_factory=Loss)
    unroll: Unroll = field(default_factory=Unroll)
    optimiser: Optimiser = field(default_factory=Optimiser)
    batch: Batch = field(default_factory=Batch)


#: Settings of `head` that each family reads.
_READ = {
    "feature": {"blocks"},
    "surgery": {"blocks"},
    "projection": {"width", "draft_vocab_size"},
    "eagle1": set(),
    "eagle3": {"draft_vocab_size", "layer_ids"},
    "medusa": {"blocks"},
}
_POSITIVE = {"head.blocks", "epochs", "held_out", "evaluate_every", "unroll.steps", "unroll.decay", "batch.tokens"} | {
    "optimiser.learning_rate",
    "optimiser.clip",
    "batch.micro_batches",
    "batch.length",
}


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """A shipped recipe as written."""
    if name not in shipped_recipes():
        raise UsageError(f"there is no recipe {name}", f"One of {', '.join(shipped_recipes())} was expected")
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name: str, changes: list[str] | None = None) -> Recipe:
    """A shipped recipe by name or one in a TOML file, with `changes` such as `optimiser.learning_rate=1e-3`.

    Raises:
        UsageError: no such recipe, an unknown setting, or a value of the wrong kind.
    """
    file = Path(name)
    if file.suffix == ".toml":
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}", "A recipe in TOML was expected") from None
    else:
        text = recipe_text(name)
    written = _parse(text, f"recipe {name}")
    written.setdefault("name", file.stem)
    for change in changes or []:
        _apply(written, change)
    recipe = _build(Recipe, written, "")
    _check(recipe, written.get("head", {}))
    return recipe


def _folder() -> Any:
    return resources.files(__package__) / "recipes"


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{what} is no TOML: {error}", "Lines such as `epochs = 1` were expected") from None


def _apply(written: dict[str, Any], change: str) -> None:
    path, equals, value = change.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {change} is no setting", "It is written as optimiser.learning_rate=1e-3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for key in keys[:-1]:
        written = written.setdefault(key, {})
        if not isinstance(written, dict):
            raise UsageError(f"--set {change}: {key} is not a table of settings", "Print the recipe to see its tables")
    written[keys[-1]] = parsed


def _build(kind: type, written: Any, where: str) -> Any:
    if not isinstance(written, dict):
        raise UsageError(f"the recipe's {where.rstrip('.')} is {written!r}", "A table of settings was expected")
    types = get_type_hints(kind)
    unknown = sorted(set(written) - set(types))
    if unknown:
        raise UsageError(f"the recipe has an unknown setting {where}{unknown[0]}", f"Known are {', '.join(types)}")
    if "family" in types and "family" not in written:
        raise UsageError("the recipe names no family", f"family = one of {', '.join(FAMILIES)} was expected")
    return kind(**{key: _value(types[key], value, f"{where}{key}") for key, value in written.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, f"{name}.")
    if kind is float and type(value) is int:
        value = float(value)
    if kind == tuple[int, ...]:
        fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
        value = tuple(value) if fits else value
    else:
        fits = type(value) is kind and (kind is str or (math.isfinite(value) and value >= 0))
        fits = fits and not (name in _POSITIVE and value == 0)
    if not fits:
        wanted = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
            kind, "a list of whole numbers"
        )
        wanted += " above 0" if name in _POSITIVE else "" if kind in (str, bool) else ", not negative"
        raise UsageError(f"the recipe says {name} is {value!r}", f"{wanted.capitalize()} was expected")
    return value


def _check(recipe: Recipe, head: dict[str, Any]) -> None:
    if recipe.family not in FAMILIES:
        raise UsageError(f"the recipe's family is {recipe.family}", f"One of {', '.join(FAMILIES)} was expected")
    if recipe.precision not in ("bf16", "fp32"):
        raise UsageError(f"the recipe's precision is {recipe.precision}", "bf16 or fp32 was expected")
    foreign = sorted(set(head) - _READ[recipe.family])
    if foreign:
        reads = ", ".join(sorted(_READ[recipe.family])) or "nothing"
        raise UsageError(f"the recipe sets head.{foreign[0]}", f"A {recipe.family} head reads {reads} there")
    if (recipe.loss.smooth_l1 or recipe.loss.mse) and recipe.family in _OWN_LM_HEAD:
        raise UsageError(
            f"the recipe asks a {recipe.family} head to match the target's features",
            "Its output is read by an lm_head of its own, so it has no feature of the target to match",
            "Set loss.smooth_l1 and loss.mse to 0",
        )
    if recipe.loss.vocabulary and recipe.family in _OWN_LM_HEAD:
        raise UsageError(
            f"the recipe sets loss.vocabulary = {recipe.loss.vocabulary} for a {recipe.family} head",
            "Its lm_head is its own, and every row of it must learn",
            "Set head.draft_vocab_size instead",
        )
    if not any(value for name, value in dataclasses.asdict(recipe.loss).items() if name != "vocabulary"):
        raise UsageError("every weight in the recipe's loss is 0", "At least one term was expected")
    if recipe.optimiser.beta1 >= 1 or recipe.optimiser.beta2 >= 1:
        raise UsageError("the recipe's beta1 or beta2 is 1 or more", "Numbers below 1 were expected")
    if recipe.batch.tokens < recipe.batch.length * recipe.batch.micro_batches:
        raise UsageError(
            f"batch.tokens is {recipe.batch.tokens}, in {recipe.batch.micro_batches} parts",
            f"Each part must hold a conversation of batch.length = {recipe.batch.length} tokens",
        )
