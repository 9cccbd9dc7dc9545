"""Running a target in plain torch, by the class of transformers that its config names; its text part alone."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ..errors import HeadError
from .target import Target
from .text_config import known_config, model_class, read_raw


class TargetNotRun(HeadError):
    """This target cannot be run in torch here."""


def load_model(target: Target, dtype: torch.dtype | None) -> Any:
    """The part of the target that speaks, in evaluation mode; in its own precision where `dtype` is None.

    Raises:
        TargetNotRun: transformers has no class for it, lacks something, or misses tensors.
    """
    if reason := why_not(target):
        raise _not_run(target, reason)
    config: Any = known_config(target.folder, read_raw(target.folder, target.name), target.name)
    named: Any = model_class(target.config.architecture)
    if not _speaks(named):
        named = AutoModelForCausalLM
    try:
        model, loading = named.from_pretrained(
            target.folder, config=config, dtype=dtype or "auto", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise _not_run(target, " ".join(str(error).split())[:300]) from None
    if loading["missing_keys"]:
        raise _not_run(target, f"its files lack {', '.join(sorted(loading['missing_keys'])[:3])}")
    return speaker(model).eval().requires_grad_(False)


def why_not(target: Target) -> str:
    """What keeps torch from running this target here, as far as that shows without loading it; empty if nothing does."""
    raw = read_raw(target.folder, target.name)
    config = known_config(target.folder, raw, target.name)
    if config is None:
        return f"transformers has no class for {target.config.model_type or target.config.architecture}"
    if not _speaks(model_class(target.config.architecture)) and type(config) not in AutoModelForCausalLM._model_mapping:
        return f"transformers has no class for {target.config.architecture or target.config.model_type}"
    return _why_not_quantised(raw) if target.config.quantisation else ""


def speaker(model: Any) -> Any:
    """The model in `model` that has an lm_head."""
    for inner in (model, *(getattr(model, name, None) for name in ("thinker", "language_model"))):
        if isinstance(inner, nn.Module) and _lm_head(inner) is not None:
            return inner
    return model


def decoder_of(model: Any) -> Any:
    """The stack of layers that turns tokens into last hidden states, its final norm included."""
    found = model.get_decoder()
    if found is None:
        return model.base_model
    return found if _lm_head(found) is None else found.model  # Llama-4 calls a whole language model its decoder


def _speaks(found: type[Any] | None) -> bool:
    """Whether a class of transformers has an lm_head, by the ending of its name."""
    name = "Model" if found is None else found.__name__
    return name.endswith("LMHeadModel") or not name.endswith(("Model", "Classification", "Answering"))


def _lm_head(model: Any) -> Any:
    try:
        return model.get_output_embeddings()
    except NotImplementedError:
        return None


def _why_not_quantised(raw: dict[str, Any]) -> str:
    from transformers.quantizers import AutoHfQuantizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        quantizer = AutoHfQuantizer.from_config(json.loads(json.dumps(raw["quantization_config"])), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, dtype=torch.float32)
    except Exception as error:  # each method asks for packages and devices in its own way
        return " ".join(str(error).split())[:200]
    return ""


def _not_run(target: Target, reason: str) -> TargetNotRun:
    return TargetNotRun(
        f"the target {target.name} cannot be run in torch: {reason}",
        "Measuring a head needs a target that transformers can run",
        "Measure it where vLLM runs the target: vllm-eagle bench acceptance",
    )
