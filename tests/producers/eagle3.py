"""EAGLE-3 in SafeAILab's layout and those derived from it (`midlayer.*`)."""

from __future__ import annotations

from pathlib import Path

import torch

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead

from .eagle1 import trainer_files
from .layout import (
    DEEP,
    Fixture,
    State,
    as_midlayer,
    llama,
    marked,
    save_bin,
    save_config,
    save_safetensors,
    state_of,
)


def layer_outputs(config: Eagle3Config) -> list[int]:
    """Its layers, counted as SpecForge and ModelOpt count them: outputs of layers."""
    assert config.eagle_aux_hidden_state_layer_ids
    return [i - 1 for i in config.eagle_aux_hidden_state_layer_ids]


def vocabulary(head: ReferenceHead) -> State:
    """`d2t` and `t2d` as trainers register them in any case: zeros and ones for the whole vocabulary."""
    d2t = torch.zeros(head.config.draft_vocab, dtype=torch.long) if head.d2t is None else head.d2t.clone()
    return {"d2t": d2t, "t2d": marked(head.config, head.d2t)}


def published(head: ReferenceHead, folder: Path) -> None:
    """`yuhuili/EAGLE3-*`: no embedding, no layer ids."""
    save_bin({**as_midlayer(state_of(head)), **vocabulary(head)}, folder)
    save_config(llama(head.config, draft_vocab_size=head.config.draft_vocab, pad_token_id=0), folder)


def vicuna(head: ReferenceHead, folder: Path) -> None:
    """The whole vocabulary with a d2t of zeros and a t2d of zeros, and the target's 40 layers."""
    config = head.config
    placeholders = {"d2t": torch.zeros(config.draft_vocab, dtype=torch.long), "t2d": torch.zeros(config.vocab_size)}
    save_bin({**as_midlayer(state_of(head)), **placeholders}, folder)
    save_config(llama(config, num_hidden_layers=40, draft_vocab_size=config.draft_vocab), folder)


def narrow(head: ReferenceHead, folder: Path) -> None:
    """Llama-3.3-70B's: a head of another width than its target, with an embedding of its own."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head)}, folder)
    more = {"target_hidden_size": head.config.target_width, "draft_vocab_size": head.config.draft_vocab}
    save_config(llama(head.config, **more), folder)


def with_target_inside(head: ReferenceHead, folder: Path) -> None:
    """DeepSpeed's 16-bit save of the training module, frozen parts included."""
    assert head.target_embedding is not None
    state = {**as_midlayer(state_of(head)), **vocabulary(head)}
    state |= {f"target_model.model.layers.{i}.mlp.up_proj.weight": torch.rand(4, 4) for i in range(3)}
    state |= {"embed_tokens.weight": head.target_embedding, "target_model.lm_head.weight": torch.rand(4, 4)}
    save_bin(state, folder)
    save_config(llama(head.config, draft_vocab_size=head.config.draft_vocab), folder)


def specforge(head: ReferenceHead, folder: Path) -> None:
    """Layer ids nested and counted as outputs, `norm_output` meaning a norm before the lm_head, t2d and d2t always."""
    assert isinstance(head.config, Eagle3Config)
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head)}, folder)
    nested = {"eagle_aux_hidden_state_layer_ids": layer_outputs(head.config), "use_aux_hidden_state": True}
    more = {
        "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": head.config.draft_vocab, "head_dim": 32,
        "target_model_type": "llama", "norm_output": True, "fc_norm": head.config.fc_norm, "eagle_config": nested,
    }  # fmt: skip
    save_config(llama(head.config, **more), folder)


def specforge_default(head: ReferenceHead, folder: Path) -> None:
    """A config that names no layers and no flags: SpecForge's defaults."""
    assert head.target_embedding is not None
    state = {**as_midlayer(state_of(head)), **vocabulary(head), "embed_tokens.weight": head.target_embedding}
    save_safetensors(state, folder)
    more = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": head.config.draft_vocab}
    save_config(llama(head.config, **more), folder)


def specforge_unnormed(head: ReferenceHead, folder: Path) -> None:
    """`norm_output: false`: the norm is saved like all parameters and never applied."""
    norm = torch.rand(head.config.hidden_size) + 0.5
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head), "norm.weight": norm}, folder)
    more = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": head.config.draft_vocab}
    save_config(llama(head.config, norm_output=False, **more), folder)


def specforge_training(head: ReferenceHead, folder: Path) -> None:
    """A run's `training_state.pt` before any export: no embedding, the vocabulary in a file beside it."""
    state = as_midlayer(state_of(head))
    state.pop("d2t")
    torch.save({"draft_state_dict": state, "strategy": "eagle3", "global_step": 40}, folder / "training_state.pt")
    torch.save({"rank": 0}, folder / "training_state_rank0.pt")
    (folder / "vocab_mapping").mkdir()
    torch.save(vocabulary(head), folder / "vocab_mapping" / "0123abcd.pt")
    more = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": head.config.draft_vocab}
    save_config(llama(head.config, target_model_type="llama", **more), folder, "draft/config.json")


def angelslim(head: ReferenceHead, folder: Path) -> None:
    """A config with the target's RoPE base and tied embeddings, neither of which its training code reads."""
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head)}, folder)
    more = {"architectures": ["Eagle3LlamaForCausalLM"], "draft_vocab_size": head.config.draft_vocab}
    save_config(llama(head.config, rope_theta=1000000, rope_scaling=None, tie_word_embeddings=True, **more), folder)
    trainer_files(folder)


def baldeagle(head: ReferenceHead, folder: Path) -> None:
    """The class name that SpecForge's has too, 32-bit offsets, Hugging Face's trainer's files."""
    d2t = vocabulary(head)["d2t"].to(torch.int32)
    save_safetensors({**as_midlayer(state_of(head)), **vocabulary(head), "d2t": d2t}, folder)
    more = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": head.config.draft_vocab}
    save_config(llama(head.config, **more), folder)
    trainer_files(folder)


_REDUCED = {"case": "eagle3-default-reduced", "layers": DEEP}
_WHOLE = {"case": "eagle3-default", "layers": DEEP}
_SERVED = "safeailab-eagle3"

FIXTURES = {
    _SERVED: Fixture("safeailab-eagle3", write=published, **_REDUCED),
    "safeailab-eagle3: Vicuna": Fixture("safeailab-eagle3", write=vicuna, **_WHOLE),
    "safeailab-eagle3: 70B": Fixture("safeailab-eagle3", "eagle3-narrow", narrow, layers=DEEP),
    "safeailab-eagle3: whole dump": Fixture("safeailab-eagle3", write=with_target_inside, same_as=_SERVED, **_REDUCED),
    "specforge": Fixture("specforge", write=specforge, same_as=_SERVED, **_REDUCED),
    "specforge: defaults": Fixture("specforge", write=specforge_default, same_as=_SERVED, **_REDUCED),
    "specforge: whole vocabulary": Fixture("specforge", write=specforge, same_as="safeailab-eagle3: Vicuna", **_WHOLE),
    "specforge: fc_norm": Fixture("specforge", "eagle3-default-fc-norm", specforge, layers=DEEP),
    "specforge: norm_output false": Fixture("specforge", "eagle3-default-no-norm", specforge_unnormed, layers=DEEP),
    "specforge: training state": Fixture(
        "specforge", write=specforge_training, config="draft/config.json", same_as=_SERVED, **_REDUCED
    ),
    "angelslim": Fixture("angelslim", write=angelslim, same_as=_SERVED, **_REDUCED),
    "baldeagle-eagle3": Fixture("baldeagle-eagle3", write=baldeagle, same_as=_SERVED, **_REDUCED),
}
