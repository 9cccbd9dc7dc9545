"""EAGLE-3 heads convert for targets of every shape; what cannot be proven or served of them is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion.installed import VERSION, KnownVllm
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.verify import check as checking

from vllm_eagle_plugin.errors import HeadError

from .heads import save_head
from .tiny import save, tiny_model

#: Targets whose text model lies inside another, whose parts are fused, and whose config needs code; and what of
#: their heads' configs is theirs.
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "multimodal, Llama-4": ("Llama4ForConditionalGeneration", {}),
    "multimodal, Mistral-3": ("Mistral3ForConditionalGeneration", {}),
    "multimodal, LLaVA": ("LlavaForConditionalGeneration", {}),
    "fused, Phi-3": ("Phi3ForCausalLM", {"model_type": "phi3"}),
    "fused, GPT-NeoX": ("GPTNeoXForCausalLM", {"model_type": "gpt_neox"}),
    "biased, Qwen2": ("Qwen2ForCausalLM", {"model_type": "qwen2"}),
    "multimodal RoPE, Qwen3-VL": (
        "Qwen3VLForConditionalGeneration",
        {"rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}},
    ),
    "multimodal RoPE, Qwen2.5-VL": (
        "Qwen2_5_VLForConditionalGeneration", {"rope_scaling": {"type": "mrope", "mrope_section": [6, 5, 5]}},
    ),
    "multimodal RoPE, Qwen3-VL of experts": (
        "Qwen3VLMoeForConditionalGeneration",
        {"rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}},
    ),
}  # fmt: skip
#: Known architectures under a name that only code on the hub, or vLLM, knows.
RENAMED = {
    "kimi_k2": "DeepseekV3ForCausalLM",
    "a_fork_of_qwen": "Qwen3ForCausalLM",
    "a_fork_of_llama": "LlamaForCausalLM",
}
#: Targets that vLLM hands no aux hidden states of over.
NOT_SERVED = ("Gemma3ForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM", "Gemma2ForCausalLM")


@pytest.fixture(autouse=True)
def _without_engines(monkeypatch):
    monkeypatch.setattr(checking, "has_vllm", lambda: False)


def target_of(architecture: str, folder: Path, **config: Any) -> str:
    save(tiny_model(architecture), folder)
    edit(folder, **config)
    return str(folder)


def edit(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


@pytest.mark.parametrize("name", SERVED)
def test_converts_and_is_proven(name, tmp_path):
    architecture, config = SERVED[name]
    head = save_head(tmp_path / "head", without=("head_dim",) if "fused" in name else (), **config)
    done = convert(head, target_of(architecture, tmp_path / "target"), tmp_path / "out", verify=True)
    assert done.verification["passed"]
    assert done.verification["positions"] >= 100
    assert "not_proven" not in done.verification, "the target's own states were used"


@pytest.mark.parametrize("name", RENAMED)
def test_a_config_that_comes_with_code(name, tmp_path):
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    target = target_of(RENAMED[name], tmp_path / "target", model_type=name, auto_map=code)
    done = convert(save_head(tmp_path / "head"), target, tmp_path / "out", verify=True)
    assert done.verification["passed"]
    assert "not_proven" not in done.verification, "the class it names is transformers' own"


@pytest.mark.parametrize("cause", ["no class", "only a GPU"])
def test_a_target_that_cannot_be_run(cause, tmp_path):
    """What random states can show is shown, and what they cannot is said."""
    gpu = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    novel = {"model_type": "novel", "architectures": ["NovelForCausalLM"]}
    target = target_of("LlamaForCausalLM", tmp_path / "target", **(novel if cause == "no class" else gpu))
    done = convert(save_head(tmp_path / "head"), target, tmp_path / "out", verify=True)
    assert done.verification["passed"]
    assert done.verification["positions"] >= 200
    assert "random states stood in" in done.verification["not_proven"]
    assert checking.sentence(done.verification).endswith(done.verification["not_proven"])


def test_random_states_show_a_wrong_head(tmp_path, monkeypatch):
    target = target_of("LlamaForCausalLM", tmp_path / "target", model_type="novel", architectures=["NovelForCausalLM"])
    head = save_head(tmp_path / "head")
    real = checking.read_written

    def damaged(*args: Any) -> Any:
        written = real(*args)
        written.layers[0].self_attn.k_proj.weight.data *= 1.3
        return written

    monkeypatch.setattr(checking, "read_written", damaged)
    with pytest.raises(HeadError, match="does not compute what the trained one does"):
        convert(head, target, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_where_vllm_cannot_run_the_target_torch_verifies_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "has_vllm", lambda: True)

    def answer(job: Any) -> dict[str, Any]:
        if job.alone:
            return {"alone": "Device string must not be empty"}
        raise checking.BrokenOff("verification in vLLM broke off: Device string must not be empty")

    monkeypatch.setattr(checking, "_answer", answer)
    target = target_of("LlamaForCausalLM", tmp_path / "target")
    done = convert(save_head(tmp_path / "head"), target, tmp_path / "out", verify=True)
    assert (done.verification["passed"], done.verification["engine"]) == (True, "torch")
    assert "Device string must not be empty" in done.verification["not_proven"]
    monkeypatch.setattr(
        checking, "_answer", lambda job: {"alone": ""} if job.alone else answer(replace(job, alone=False))
    )
    with pytest.raises(HeadError, match="broke off"):
        convert(tmp_path / "head", target, tmp_path / "other", verify=True)


@pytest.mark.parametrize("architecture", NOT_SERVED)
def test_a_target_that_hands_no_aux_states_over(architecture, tmp_path):
    target = target_of(architecture, tmp_path / "target")
    head = save_head(tmp_path / "head", sliding_window=512, use_sliding_window=False)
    stock = inspect_head(head, target=target).stock
    assert stock is not None
    assert stock["outcome"] == "refuses"
    assert "SupportsEagle3" in stock["text"]
    with pytest.raises(HeadError, match=f"{architecture} has no SupportsEagle3") as caught:
        convert(head, target, tmp_path / "out", verify=True)
    assert "no-verify" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_vllm_its_table_speaks(tmp_path, monkeypatch):
    table = KnownVllm(VERSION, {"LlamaForCausalLM": True, "LlamaForCausalLMEagle3": True, "Gemma3ForCausalLM": False})
    for module in ("route", "stock"):
        monkeypatch.setattr(f"vllm_eagle_plugin.conversion.{module}.known_vllm", lambda: table)
    head = save_head(tmp_path / "head")
    stock = inspect_head(
        head, Options(aux_ids_convention="boundary"), target=target_of("LlamaForCausalLM", tmp_path / "llama")
    ).stock
    assert stock is not None
    assert stock["outcome"] == "runs"
    assert f"vLLM {VERSION} (by its table: none is installed)" in stock["text"]
    done = convert(head, target_of("Gemma3ForCausalLM", tmp_path / "gemma"), tmp_path / "out")
    assert any("a later version may" in note for note in done.reading.notes), "a table of one version refuses nothing"
