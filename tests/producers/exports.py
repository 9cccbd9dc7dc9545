"""EAGLE-3 as exporters and libraries write it (`layers.0.*`): ModelOpt, TorchSpec, speculators, NeMo Automodel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead

from .eagle3 import layer_outputs, vocabulary
from .layout import (
    DEEP,
    Fixture,
    as_midlayer,
    llama,
    marked,
    prefixed,
    save_bin,
    save_config,
    save_safetensors,
    state_of,
)


def modelopt_config(head: ReferenceHead, ids: list[int] | None, **nested: Any) -> dict[str, Any]:
    """Everything of ModelOpt's template, nulls included."""
    flags = {
        "eagle_aux_hidden_state_layer_ids": ids, "use_aux_hidden_state": True, "use_last_layernorm": True,
        "use_input_layernorm_in_first_layer": True, "use_mtp_layernorm": False, "next_layer_regular": True,
        "parallel_draft_step": 1, "parallel_draft_heads_num_layers": None, **nested,
    }  # fmt: skip
    return llama(
        head.config, architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=head.config.draft_vocab,
        rope_theta=None, rope_scaling={"rope_type": "default", "rope_theta": 10000.0}, pretraining_tp=None,
        eagle_config=flags,
    )  # fmt: skip


def modelopt(head: ReferenceHead, folder: Path) -> None:
    """Layer ids from a set, d2t without t2d, no embedding."""
    assert isinstance(head.config, Eagle3Config)
    first, *others = layer_outputs(head.config)
    save_safetensors(state_of(head), folder)
    save_config(modelopt_config(head, [*others, first]), folder)
    save_config({"producer": {"name": "modelopt"}}, folder, "hf_quant_config.json")


def modelopt_boundary(head: ReferenceHead, folder: Path) -> None:
    """NVIDIA's gpt-oss releases: the same list in vLLM's count."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors(state_of(head), folder)
    save_config(modelopt_config(head, head.config.eagle_aux_hidden_state_layer_ids), folder)


def modelopt_shared(head: ReferenceHead, folder: Path) -> None:
    """Without an lm_head of its own, the export carries a copy of the target's."""
    assert isinstance(head.config, Eagle3Config)
    assert head.target_lm_head is not None
    save_safetensors({**state_of(head), "lm_head.weight": head.target_lm_head}, folder)
    save_config(modelopt_config(head, layer_outputs(head.config)), folder)


def modelopt_no_aux(head: ReferenceHead, folder: Path) -> None:
    """Reads the target's last hidden state: no fc."""
    save_safetensors(state_of(head), folder)
    save_config(modelopt_config(head, [], use_aux_hidden_state=False), folder)


def modelopt_eagle1(head: ReferenceHead, folder: Path) -> None:
    """Earlier Hugging Face plugins without aux hidden states: EAGLE-1 in all but the config."""
    save_safetensors(state_of(head), folder)
    save_config(modelopt_config(head, [], use_aux_hidden_state=False), folder)


def modelopt_no_norm(head: ReferenceHead, folder: Path) -> None:
    """`use_last_layernorm: false`: there is no norm."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors(state_of(head), folder)
    save_config(modelopt_config(head, layer_outputs(head.config), use_last_layernorm=False), folder)


def modelopt_norm_before_fc(head: ReferenceHead, folder: Path) -> None:
    """`input_norm` over the fused states, its flag nested."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors(state_of(head), folder)
    save_config(modelopt_config(head, layer_outputs(head.config), norm_before_fc=True), folder)


def modelopt_training(head: ReferenceHead, folder: Path) -> None:
    """Before the export: the whole model, the head under `eagle_module.`."""
    assert isinstance(head.config, Eagle3Config)
    base = {f"model.layers.{i}.mlp.up_proj.weight": torch.rand(4, 4) for i in range(3)}
    base |= {"lm_head.weight": torch.rand(4, 4), "model.embed_tokens.weight": torch.rand(4, 4)}
    save_safetensors({**base, **prefixed(state_of(head), "eagle_module.")}, folder)
    torch.save({"modelopt_version": "0.40"}, folder / "modelopt_state.pth")
    save_config(modelopt_config(head, layer_outputs(head.config)), folder)


def torchspec(head: ReferenceHead, folder: Path) -> None:
    """`convert_to_hf` with its vLLM flag: `layers.0.*`, a version, a copy of the embedding."""
    assert head.target_embedding is not None
    state = {**state_of(head), **vocabulary(head), "embed_tokens.weight": head.target_embedding}
    save_safetensors(state, folder)
    save_config(_torchspec_config(head), folder)


def torchspec_native(head: ReferenceHead, folder: Path) -> None:
    """Without the flag: `midlayer.*`, layer ids as outputs of layers."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head)}, folder)
    save_config(_torchspec_config(head, eagle_aux_hidden_state_layer_ids=layer_outputs(head.config)), folder)


def _torchspec_config(head: ReferenceHead, **more: Any) -> dict[str, Any]:
    return llama(
        head.config, architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=head.config.draft_vocab,
        **{"_torchspec_version": "0.1.0", **more},
    )  # fmt: skip


def torchspec31(head: ReferenceHead, folder: Path, **more: Any) -> None:
    """EAGLE-3.1 with the native names: a norm for each state before fc, the stream behind the last norm fed back."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head)}, folder)
    flags = {
        "fc_norm": True,
        "norm_output": True,
        "eagle_aux_hidden_state_layer_ids": layer_outputs(head.config),
        **more,
    }
    save_config(_torchspec_config(head, **flags), folder)


def torchspec31_unmarked(head: ReferenceHead, folder: Path) -> None:
    """The same from an exporter that leaves no mark: SpecForge writes these names too, and means something else."""
    torchspec31(head, folder, _torchspec_version=..., eagle_aux_hidden_state_layer_ids=...)


def deepspec(head: ReferenceHead, folder: Path) -> None:
    """`Qwen3Eagle3Model`: the target's config with five of its layers' outputs, frozen copies of both tables."""
    assert isinstance(head.config, Eagle3Config)
    assert head.target_embedding is not None
    assert head.target_lm_head is not None
    tables = {"embed_tokens.weight": head.target_embedding, "lm_head.weight": head.target_lm_head}
    save_safetensors({**state_of(head), **tables}, folder)
    more = {
        "target_layer_ids": layer_outputs(head.config), "num_target_layers": DEEP, "ttt_length": 7,
        "step_loss_decay": 0.8, "draft_num_hidden_layers": 1, "target_model_name_or_path": "target",
        "layer_types": ["full_attention"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 32,
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": DEEP,
    }  # fmt: skip
    save_config(llama(head.config, architectures=["Qwen3Eagle3Model"], model_type="qwen3", **more), folder)


def for_vllm(head: ReferenceHead, folder: Path) -> None:
    """Stock vLLM's own layout: `layers.0.*`, layer ids at the top, in its count."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors(state_of(head), folder)
    more = {"eagle_aux_hidden_state_layer_ids": head.config.eagle_aux_hidden_state_layer_ids}
    save_config(llama(head.config, draft_vocab_size=head.config.draft_vocab, **more), folder)


def speculators(head: ReferenceHead, folder: Path) -> None:
    """speculators 0.2 and later: the layer described inside, vLLM's count, unset flags false."""
    config = head.config
    assert isinstance(config, Eagle3Config)
    state = {**state_of(head), "t2d": marked(config, head.d2t)} if config.reduced_vocab else state_of(head)
    # Raw state dicts carry the verifier's parts too, which `save_pretrained` leaves out.
    state |= {"verifier_norm.weight": torch.rand(4), "verifier_lm_head.weight": torch.rand(4, 4)}
    save_safetensors(state, folder)
    layer = llama(
        config, architectures=..., head_dim=config.head_dim, model_type="qwen3" if config.qk_norm else "llama"
    )
    described = {
        "architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3", "speculators_version": "0.9.0",
        "draft_vocab_size": config.draft_vocab, "transformer_layer_config": layer,
        "eagle_aux_hidden_state_layer_ids": config.eagle_aux_hidden_state_layer_ids,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "target"}},
    }  # fmt: skip
    flags = {
        "norm_before_residual": config.norm_before_residual, "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm, "norm_output": config.feedback == "post_norm",
    }  # fmt: skip
    save_config({**described, **{name: value for name, value in flags.items() if value}}, folder)


def automodel(head: ReferenceHead, folder: Path) -> None:
    """NeMo Automodel: names under `model.`, most frequent tokens first, their ids in `eagle_meta.pt` alone."""
    assert head.d2t is not None
    assert head.target_embedding is not None
    state = state_of(head)
    ids = state.pop("d2t") + torch.arange(head.config.draft_vocab)
    by_frequency = torch.randperm(len(ids))
    state["lm_head.weight"] = state["lm_head.weight"][by_frequency]
    state["embed_tokens.weight"] = head.target_embedding
    _automodel(head, folder, prefixed(state, "model.", besides=["lm_head.weight"]), ids[by_frequency])


def automodel_buffers(head: ReferenceHead, folder: Path) -> None:
    """Later versions: d2t and t2d beside the lm_head."""
    assert head.d2t is not None
    state = {**state_of(head), **vocabulary(head)}
    named = prefixed(state, "model.", besides=["lm_head.weight", "d2t", "t2d"])
    _automodel(head, folder, named, head.d2t + torch.arange(head.config.draft_vocab))


def _automodel(head: ReferenceHead, folder: Path, state: dict[str, torch.Tensor], ids: torch.Tensor) -> None:
    inner = folder / "model" / "consolidated"
    save_safetensors(state, inner)
    more = {"draft_vocab_size": head.config.draft_vocab, "target_hidden_size": head.config.hidden_size}
    assert isinstance(head.config, Eagle3Config)
    flags = {
        "fc_norm": head.config.fc_norm,
        "norm_output": head.config.feedback == "post_norm",
        "parallel_drafting": False,
    }
    save_config(llama(head.config, architectures=["LlamaEagle3DraftModel"], **more, **flags), inner)
    mask = marked(head.config, head.d2t)
    meta = {"global_step": 10, "epoch": 2, "selected_token_ids": ids, "selected_token_mask": mask}
    save_bin(meta, folder, "eagle_meta.pt")
    save_config({"train_loss": 1.5}, folder, "losses.json")


_REDUCED = {"case": "eagle3-default-reduced", "layers": DEEP}
_SERVED = "safeailab-eagle3"

FIXTURES = {
    "modelopt": Fixture("modelopt", write=modelopt, same_as=_SERVED, **_REDUCED),
    "modelopt: vLLM's count": Fixture("modelopt", write=modelopt_boundary, same_as=_SERVED, **_REDUCED),
    "modelopt: target's lm_head": Fixture("modelopt", "eagle3-default-shared", modelopt_shared, layers=DEEP),
    "modelopt: no aux": Fixture("modelopt", "eagle3-no-aux", modelopt_no_aux),
    "modelopt: EAGLE-1": Fixture("modelopt", "eagle-input-norm", modelopt_eagle1),
    "modelopt: no last norm": Fixture(
        "modelopt", "eagle3-default-no-norm", modelopt_no_norm, layers=DEEP, same_as="specforge: norm_output false"
    ),
    "modelopt: norm before fc": Fixture(
        "modelopt", "eagle3-default-norm-before-fc", modelopt_norm_before_fc, layers=DEEP
    ),
    "modelopt: whole model": Fixture("modelopt", write=modelopt_training, same_as=_SERVED, **_REDUCED),
    "vllm-eagle3": Fixture("vllm-eagle3", write=for_vllm, same_as=_SERVED, **_REDUCED),
    "vllm-eagle3: TorchSpec": Fixture("vllm-eagle3", write=torchspec, same_as=_SERVED, **_REDUCED),
    "vllm-eagle3: TorchSpec, native": Fixture("vllm-eagle3", write=torchspec_native, same_as=_SERVED, **_REDUCED),
    "vllm-eagle3: EAGLE-3.1": Fixture("vllm-eagle3", "eagle3-1", torchspec31, layers=DEEP),
    "vllm-eagle3: EAGLE-3.1, unmarked": Fixture(
        "vllm-eagle3",
        "eagle3-1",
        torchspec31_unmarked,
        {"producer": "vllm-eagle3"},
        layers=DEEP,
        same_as="vllm-eagle3: EAGLE-3.1",
    ),
    "deepspec": Fixture("deepspec", "eagle3-deepspec", deepspec, layers=DEEP),
    "speculators-eagle3": Fixture("speculators-eagle3", write=speculators, same_as=_SERVED, **_REDUCED),
    "speculators-eagle3: fc_norm": Fixture(
        "speculators-eagle3", "eagle3-default-fc-norm", speculators, layers=DEEP, same_as="specforge: fc_norm"
    ),
    "speculators-eagle3: EAGLE-3.1": Fixture(
        "speculators-eagle3", "eagle3-1", speculators, layers=DEEP, same_as="vllm-eagle3: EAGLE-3.1"
    ),
    "speculators-eagle3: Qwen3": Fixture("speculators-eagle3", "eagle3-qwen3", speculators, layers=DEEP),
    "speculators-eagle3: four states": Fixture("speculators-eagle3", "eagle3-four-aux", speculators, layers=DEEP),
    "automodel-eagle3": Fixture("automodel-eagle3", write=automodel, **_REDUCED),
    "automodel-eagle3: buffers": Fixture("automodel-eagle3", write=automodel_buffers, same_as=_SERVED, **_REDUCED),
    "automodel-eagle3: EAGLE-3.1": Fixture(
        "automodel-eagle3", "eagle3-1", automodel_buffers, layers=DEEP, same_as="vllm-eagle3: EAGLE-3.1"
    ),
}
