"""Heads as their producers write them, by code that shares nothing with the readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vllm_eagle_plugin.configs import AttentionFreeConfig, Eagle3Config, EagleConfig
from vllm_eagle_plugin.reference import ReferenceHead

from .cases import CASES


class FeatureHead(nn.Module):
    """A feature-regression head as its document defines it: [hidden, embed] in, next hidden state out."""

    def __init__(self, hidden: int, embed: int, layers: int) -> None:
        super().__init__()
        self.input_projection = nn.Linear(hidden + embed, hidden)
        blocks = []
        for _ in range(layers):
            blocks += [nn.Linear(hidden, hidden), nn.SiLU(), nn.LayerNorm(hidden)]
        self.regression = nn.Sequential(*blocks)
        self.output_projection = nn.Linear(hidden, hidden)

    def forward(self, hidden: Tensor, embed: Tensor) -> Tensor:
        x = self.input_projection(torch.cat([hidden, embed], dim=-1))
        return self.output_projection(x + self.regression(x))


class SurgeryHead(nn.Module):
    """An MLP between a target's embedding and its lm_head."""

    def __init__(self, embeddings: Tensor, lm_head: Tensor, layers: int) -> None:
        super().__init__()
        vocab, hidden = embeddings.shape
        self.embeddings = nn.Embedding(vocab, hidden)
        self.lm_head = nn.Linear(hidden, vocab, bias=False)
        self.embeddings.weight.data.copy_(embeddings)
        self.lm_head.weight.data.copy_(lm_head)
        blocks = []
        for _ in range(layers):
            blocks += [nn.Linear(hidden, hidden), nn.ReLU(), nn.LayerNorm(hidden)]
        self.mlp = nn.Sequential(*blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.mlp(self.embeddings(tokens)))


def feature(head: ReferenceHead, folder: Path) -> FeatureHead:
    """`torch.save` of the module's state dict, nothing else."""
    weights = head.state_dict()
    config = head.config
    assert isinstance(config, AttentionFreeConfig)
    theirs = FeatureHead(config.hidden_size, config.embed_width, config.num_blocks)
    joined = weights["body.input_projection.weight"]
    state = {
        "input_projection.weight": torch.cat(joined.split([config.embed_width, config.hidden_size], 1)[::-1], 1),
        "input_projection.bias": weights["body.input_projection.bias"],
        "output_projection.weight": weights["body.output_projection.weight"],
        "output_projection.bias": weights["body.output_projection.bias"],
    }
    state |= {n.replace("body.blocks", "regression"): t for n, t in weights.items() if n.startswith("body.blocks")}
    theirs.load_state_dict(state)
    torch.save(theirs.state_dict(), folder / "head.pt")
    return theirs


def surgery(head: ReferenceHead, folder: Path) -> SurgeryHead:
    """`eagle_model.pt` with copies of embedding and lm_head, and the little config."""
    assert head.target_embedding is not None
    assert head.target_lm_head is not None
    theirs = SurgeryHead(head.target_embedding, head.target_lm_head, head.config.num_blocks)
    state = {n.replace("body.blocks", "mlp"): t for n, t in head.state_dict().items() if n.startswith("body.blocks")}
    theirs.load_state_dict(state, strict=False)
    torch.save(theirs.state_dict(), folder / "eagle_model.pt")
    vocab, hidden = head.target_embedding.shape
    described = {
        "model_type": "eagle",
        "hidden_size": hidden,
        "vocab_size": vocab,
        "mlp_layers": head.config.num_blocks,
    }
    (folder / "config.json").write_text(json.dumps(described))
    return theirs


def projection(head: ReferenceHead, folder: Path) -> None:
    """Plain matrices in a .npz."""
    weights = head.state_dict()
    np.savez(
        folder / "head.npz",
        projection_weights=weights["body.input_projection.weight"].numpy(),
        projection_bias=weights["body.input_projection.bias"].numpy(),
        lm_head_weights=weights["lm_head.weight"].numpy(),
    )


def safeailab(head: ReferenceHead, folder: Path) -> None:
    """`pytorch_model.bin` with the frozen embedding, and a config whose `bias` is meant for fc."""
    config = head.config
    assert isinstance(config, EagleConfig)
    torch.save({**head.state_dict(), "embed_tokens.weight": head.target_embedding}, folder / "pytorch_model.bin")
    _llama_config(config, folder, bias=config.fc_bias)


def safeailab3(head: ReferenceHead, folder: Path) -> None:
    """`model.safetensors` with `midlayer`, offsets and mask."""
    config = head.config
    assert isinstance(config, Eagle3Config)
    state = {n.replace("layers.0.", "midlayer."): t for n, t in head.state_dict().items()}
    mask = torch.zeros(config.vocab_size, dtype=torch.bool)
    mask[torch.arange(config.draft_vocab) + state["d2t"]] = True
    save_file({**state, "t2d": mask}, folder / "model.safetensors")
    _llama_config(
        config, folder, draft_vocab_size=config.draft_vocab,
        eagle_aux_hidden_state_layer_ids=config.eagle_aux_hidden_state_layer_ids,
    )  # fmt: skip


def _llama_config(config: EagleConfig | Eagle3Config, folder: Path, **more: object) -> None:
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": 2048, **more,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))


#: Producer -> (case of tests.cases, writer, options of `convert`).
PRODUCERS = {
    "feature": ("feature", feature, {"token_pairing": "next"}),
    "surgery": ("surgery", surgery, {}),
    "projection": ("projection", projection, {"token_pairing": "next"}),
    "safeailab-eagle": ("eagle-qkv-bias-only", safeailab, {}),
    "safeailab-eagle3": ("eagle3-reduced", safeailab3, {}),
}
assert set(CASES) >= {case for case, _, _ in PRODUCERS.values()}
