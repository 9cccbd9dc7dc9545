"""The three forms without attention, as the documents that define them save them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vllm_eagle_plugin.configs import AttentionFreeConfig
from vllm_eagle_plugin.reference import ReferenceHead

from .layout import Fixture, save_bin, save_config, state_of


class FeatureHead(nn.Module):
    """A feature-regression head as its document defines it: [hidden, embed] in, next hidden state out."""

    def __init__(self, hidden: int, embed: int, layers: int) -> None:
        super().__init__()
        self.input_projection = nn.Linear(hidden + embed, hidden)
        blocks: list[nn.Module] = []
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
        blocks: list[nn.Module] = []
        for _ in range(layers):
            blocks += [nn.Linear(hidden, hidden), nn.ReLU(), nn.LayerNorm(hidden)]
        self.mlp = nn.Sequential(*blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.mlp(self.embeddings(tokens)))


def feature(head: ReferenceHead, folder: Path) -> FeatureHead:
    """`torch.save` of the module's state dict, nothing else."""
    weights, config = state_of(head), head.config
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
    save_bin(theirs.state_dict(), folder, "head.pt")
    return theirs


def surgery(head: ReferenceHead, folder: Path) -> SurgeryHead:
    """`eagle_model.pt` with copies of embedding and lm_head, and the little config."""
    assert isinstance(head.config, AttentionFreeConfig)
    assert head.target_embedding is not None
    assert head.target_lm_head is not None
    theirs = SurgeryHead(head.target_embedding, head.target_lm_head, head.config.num_blocks)
    state = {n.replace("body.blocks", "mlp"): t for n, t in state_of(head).items() if n.startswith("body.blocks")}
    theirs.load_state_dict(state, strict=False)
    save_bin(theirs.state_dict(), folder, "eagle_model.pt")
    vocab, hidden = head.target_embedding.shape
    layers = head.config.num_blocks
    save_config({"model_type": "eagle", "hidden_size": hidden, "vocab_size": vocab, "mlp_layers": layers}, folder)
    return theirs


def projection(head: ReferenceHead, folder: Path) -> None:
    """Plain matrices in a .npz."""
    weights = state_of(head)
    np.savez(
        folder / "head.npz",
        projection_weights=weights["body.input_projection.weight"].numpy(),
        projection_bias=weights["body.input_projection.bias"].numpy(),
        lm_head_weights=weights["lm_head.weight"].numpy(),
    )


FIXTURES = {
    "feature": Fixture("feature", "feature", feature, {"token_pairing": "next"}),
    "surgery": Fixture("surgery", "surgery", surgery),
    "projection": Fixture("projection", "projection", projection, {"token_pairing": "next"}),
}
