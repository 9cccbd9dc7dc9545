"""What is read of vLLM's sources without importing them is what its classes are."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from vllm_eagle_plugin.conversion import installed
from vllm_eagle_plugin.conversion.installed import VERSION, KnownVllm, known_vllm, table_of

from .registry import registered

#: Classes with the interface, by themselves or by their parents', and without it.
ARCHITECTURES = (
    "LlamaForCausalLM", "TeleChat3ForCausalLM", "MistralForCausalLM", "Qwen3MoeForCausalLM",
    "GPTNeoXForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel", "Glm4ForCausalLM", "MambaForCausalLM",
)  # fmt: skip


def imported(architecture: str) -> bool | None:
    """By vLLM itself; None where its class cannot be imported on this machine."""
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.interfaces import supports_eagle3

    module, cls = registry._VLLM_MODELS[architecture]
    try:
        found = importlib.import_module(
            module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
        )
        return supports_eagle3(getattr(found, cls))
    except (ImportError, AttributeError):
        return None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture(architecture):
    assert known_vllm().installed
    assert known_vllm().hands_over_aux(architecture) is imported(architecture)


@pytest.mark.extended
def test_every_architecture_of_targets():
    truth = {name: found for name in registered() if (found := imported(name)) is not None}
    assert len(truth) > 170
    differing = {name for name in truth if known_vllm().hands_over_aux(name) != truth[name]}
    assert differing <= {"DeepseekV4ForConditionalGeneration"}, "which is a stub on CPUs, and is on GPUs what was read"


def test_the_table_is_that_of_its_version():
    table = json.loads(Path(installed.__file__).with_name(f"vllm-{VERSION}.json").read_text())
    if known_vllm().version != VERSION:
        pytest.skip(f"vLLM {known_vllm().version} is installed")
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    assert table_of(Path(next(iter(spec.submodule_search_locations)))) == table


def test_unknown_and_absent(tmp_path):
    known = known_vllm()
    assert known.hands_over_aux("NovelForCausalLM") is None
    assert not known.resolves_draft("eagle3", "NovelForCausalLM")
    assert known.resolves_draft("eagle3", "Qwen3ForCausalLM")
    assert not known.resolves_draft("eagle", "Qwen2ForCausalLM"), "there is no EagleQwen2ForCausalLM"
    assert not KnownVllm("0", None, tmp_path).knows("LlamaForCausalLM"), "sources that are not as they were"
