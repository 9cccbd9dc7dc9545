"""Checks of a head that need no weights: run in vLLM's front end before anything is loaded.

So that `vllm serve` refuses a bad head in its first seconds with one clear error, instead of in a
worker's log or on the first request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .configs import HEAD_CONFIGS, AttentionFreeConfig, Eagle3Config, HeadConfig
from .errors import HeadError

#: Methods that a user may name for a head; anything else is named for something that is not a head folder.
_FOLDER_METHODS_HINT = "Leave `method` out: it is read from the head"


@dataclass(frozen=True)
class Head:
    """A head that this package wrote: its folder or hub id and its raw config."""

    path: str
    raw: dict[str, Any]

    @property
    def config(self) -> HeadConfig | None:
        """Our config, or None for a head in a layout of stock vLLM."""
        family = HEAD_CONFIGS.get(self.raw.get("model_type", ""))
        if family is None:
            return None
        check_types(family, self.raw)
        return family.from_dict(self.raw)

    @property
    def provenance(self) -> dict[str, Any]:
        found = self.raw.get("eagle_provenance") or {}
        if not isinstance(found, dict):
            raise HeadError(
                f"eagle_provenance of the draft head {self.path!r} is {found!r}",
                "An object was expected",
                "Convert the head again",
            )
        return found

    @property
    def method(self) -> str:
        config = self.config
        return config.method if config is not None else self.provenance["method"]


def find_head(model: Any, revision: str | None = None) -> Head | None:
    """The head behind speculative `model` if it is one of ours, else None. Reads only `config.json`."""
    if not isinstance(model, str) or not model:
        return None
    try:
        if Path(model).is_dir():
            raw = json.loads((Path(model) / "config.json").read_text())
        elif model.count("/") == 1 and not model.startswith((".", "/")):
            from transformers import PretrainedConfig

            raw, _ = PretrainedConfig.get_config_dict(model, revision=revision)
        else:
            return None
    except (OSError, ValueError):
        return None  # unreadable: vLLM says so itself
    if not isinstance(raw, dict):
        return None
    provenance = raw.get("eagle_provenance")
    stock = isinstance(provenance, dict) and "method" in provenance
    return Head(model, raw) if stock or raw.get("model_type") in tuple(HEAD_CONFIGS) else None


def draft_config(vllm_config: Any) -> Any:
    """The draft model's config; None without one."""
    speculative = getattr(vllm_config, "speculative_config", None)
    return getattr(getattr(speculative, "draft_model_config", None), "hf_config", None)


def provenance(config: Any) -> dict[str, Any]:
    """What our converter wrote about a head into its config; empty: it is none of ours."""
    return getattr(config, "eagle_provenance", None) or {}


def is_ours(config: Any) -> bool:
    """Whether a draft model's config is of a head that this package wrote, in our layout or in stock vLLM's."""
    return isinstance(getattr(config, "model", None), HeadConfig) or "target" in provenance(config)


#: Whether a value from JSON is of an annotated type.
_TYPES: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float),
    "str": lambda value: isinstance(value, str),
    "list[int]": lambda value: isinstance(value, list) and all(type(item) is int for item in value),
    "dict[str, Any]": lambda value: isinstance(value, dict),
}


def check_types(family: type[HeadConfig], raw: dict[str, Any]) -> None:
    """Refuse values of other types than the flags of `family` have, before anything computes with them."""
    for cls in family.__mro__:
        if not issubclass(cls, HeadConfig):
            continue
        for name, kind in vars(cls).get("__annotations__", {}).items():
            if name in raw and not any(_TYPES[option](raw[name]) for option in kind.split(" | ")):
                raise HeadError(
                    f"{name} is {raw[name]!r} in the head's config.json",
                    f"It must be of type {kind}",
                    "Convert the head again, or correct it",
                )


def check_request(speculative: Any, head: Head) -> None:
    """Fill in `method`, and refuse settings this head cannot run with."""
    if speculative.method is None:
        speculative.method = head.method
    elif speculative.method != head.method:
        raise HeadError(
            f"speculative method {speculative.method!r} was asked for the draft head {head.path!r}",
            f"This head needs method {head.method!r}",
            _FOLDER_METHODS_HINT,
        )
    config = head.config
    if config is not None:
        config.validate_head()
        limit = config.max_draft_tokens
        asked = speculative.num_speculative_tokens
        if limit is not None and asked is not None and asked > limit:
            width = config.lm_head_width
            raise HeadError(
                f"num_speculative_tokens is {asked}, but this head's output is {width} wide and the hidden state it "
                f"reads {config.hidden_size}, so it cannot be fed its own output",
                f"It can draft {limit} token",
                f"Set num_speculative_tokens to {limit}",
            )
        if getattr(speculative, "parallel_drafting", False):
            raise HeadError("parallel_drafting is set", "This head drafts one token after another", "Leave it out")
    elif head.raw.get("parallel_drafting") is True:  # else vLLM would skip its mask_hidden with a warning
        speculative.parallel_drafting = True
    if getattr(speculative, "draft_lm_head_quantization", None) is not None:  # vLLM 0.33
        raise HeadError(
            "draft_lm_head_quantization is set", "A head here shares the target's lm_head as it is", "Leave it out"
        )
    if Path(head.path).is_dir():
        check_tensors(head)


def check_tensors(head: Head) -> None:
    """Compare the names and shapes in a local head's safetensors with what its config needs."""
    from .checkpoint import safetensors_shapes

    files = sorted(Path(head.path).glob("*.safetensors"))
    if not files:
        raise HeadError(
            f"the head {head.path!r} has no safetensors file", "Its weights were expected there", "Convert it again"
        )
    compare_tensors(_expected(head), safetensors_shapes(files))


def _expected(head: Head) -> dict[str, tuple[int, ...]]:
    config = head.config
    if config is None:  # stock layout: the converter listed what it wrote
        return {name: tuple(shape) for name, shape in head.provenance.get("tensors", {}).items()}
    from .reference import expected_tensors

    return expected_tensors(config)


def compare_tensors(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raise `HeadError` naming every missing, unexpected or misshapen tensor."""
    problems = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in found]
    problems += [f"{name} {list(shape)} is unexpected" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} is {list(found[name])} but must be {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise HeadError(
            f"the draft head's tensors do not fit its config.json: {shown}",
            "Each flag in config.json calls for certain tensors, and no others",
            "Convert the head again, or mend the flag",
        )


def check_target(speculative: Any, head: Head) -> None:
    """Compare the head with the target that vLLM was asked to serve."""
    target = speculative.target_model_config
    hidden, vocab = target.get_hidden_size(), target.get_vocab_size()
    layers = getattr(target.hf_text_config, "num_hidden_layers", None)
    made_for = head.provenance.get("target") or {}
    where = f"the target {target.model!r}"
    hint = f"The head was made for {made_for['name']!r}" if made_for.get("name") else "Is this head for another target?"
    config = head.config
    raw = head.raw
    head_hidden = config.target_width if isinstance(config, Eagle3Config) else raw.get("hidden_size")
    if config is None:
        head_hidden = raw.get("target_hidden_size") or head_hidden
    if head_hidden != hidden:
        raise HeadError(f"the draft head reads hidden states of width {head_hidden}, {where} has {hidden}", hint)
    if raw.get("vocab_size") != vocab:
        raise HeadError(f"the draft head knows {raw.get('vocab_size')} tokens, {where} has {vocab}", hint)
    if layers is not None and made_for.get("num_hidden_layers") not in (None, layers):
        raise HeadError(
            f"the draft head was made for a target of {made_for['num_hidden_layers']} layers, {where} has {layers}",
            hint,
        )
    ids = raw.get("eagle_aux_hidden_state_layer_ids")
    if ids and layers is not None and max(ids) > layers:
        raise HeadError(f"the draft head reads layer {max(ids)} of its target, {where} has only {layers} layers", hint)
    if speculative.target_parallel_config.pipeline_parallel_size > 1:
        _refuse_pipeline(head)


def _refuse_pipeline(head: Head) -> None:
    config = head.config
    if config is not None:
        alone = config.own_embedding or not config.reads_embedding
    else:
        alone = any("embed_tokens" in name for name in head.provenance.get("tensors", {}))
    if not alone:
        raise HeadError(
            "pipeline parallelism with a head that uses the target's embedding",
            "The embedding lives on the first stage, the head on the last",
            "Convert the head with its own embedding, or use tensor parallelism",
        )


def check_adapters(vllm_config: Any) -> None:
    """On a CPU, requests without an adapter beside some with one got wrong tokens when drafts were verified."""
    if vllm_config.lora_config is not None and vllm_config.device_config.device_type == "cpu":
        raise HeadError(
            "LoRA adapters beside a draft head on a CPU",
            "Answers were seen to be wrong there, without an error",
            "Leave out the head or enable_lora",
        )


def check_v1(vllm_config: Any) -> None:
    """Refuse what vLLM's V1 model runner cannot do with a head."""
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise HeadError(
            "pipeline parallelism with a draft head on vLLM's V1 model runner",
            "Its first stage looks for the drafter, which only the last one has",
            "Use tensor parallelism",
        )


def check_v2(vllm_config: Any) -> None:
    """Refuse what a head of ours cannot do on vLLM's Model Runner V2."""
    attention_free = isinstance(getattr(draft_config(vllm_config), "model", None), AttentionFreeConfig)
    if attention_free and vllm_config.parallel_config.prefill_context_parallel_size > 1:
        raise HeadError(
            "prefill context parallelism with a head that has no attention",
            "Such a head reads the last position of a prompt, which one rank alone has",
            "Leave prefill_context_parallel_size out",
        )
    if vllm_config.speculative_config.parallel_drafting:
        raise HeadError(
            "VLLM_USE_V2_MODEL_RUNNER=1 with a head that drafts all tokens in one pass",
            "vLLM's Model Runner V2 drafts one after another",
            "Unset it: vLLM then takes its V1 runner for this head",
        )
