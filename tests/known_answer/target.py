"""Tiny targets that speak a language with a known next token.

They are ordinary Hugging Face models with random weights, except that attention adds nothing (so that
the next token depends on the current one alone) and that one matrix is solved for the language.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedModel

VOCAB, WIDTH, LAYERS = 24, 256, 6


@dataclass
class Target:
    """A saved target and everything a closed-form head needs to know about it."""

    folder: Path
    model: PreTrainedModel
    #: [V] the next token of each token.
    successor: Tensor

    @property
    def embedding(self) -> Tensor:
        return self.model.get_input_embeddings().weight.detach()

    @property
    def lm_head(self) -> Tensor:
        return self.model.get_output_embeddings().weight.detach()

    @torch.no_grad()
    def hidden(self, tokens: Tensor, layers: list[int] | None = None) -> Tensor:
        """Last hidden state [B, T, H] of tokens [B, T], or those after `layers` layers side by side."""
        states = self.model(tokens, output_hidden_states=True).hidden_states
        return states[-1] if layers is None else torch.cat([states[i] for i in layers], -1)

    def walk(self, start: int, length: int) -> list[int]:
        """`length` tokens of the language from `start` on."""
        tokens = [start]
        while len(tokens) < length:
            tokens.append(int(self.successor[tokens[-1]]))
        return tokens


def cycle(vocab: int, subset: int | None = None, seed: int = 0) -> Tensor:
    """A language in which every token leads into one random cycle over `subset` of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.randperm(vocab, generator=generator)[: subset or vocab]
    successor = members[torch.randint(len(members), (vocab,), generator=generator)]
    successor[members] = members.roll(-1)
    return successor


def build_target(
    folder: Path,
    kind: str = "llama",
    subset: int | None = None,
    logits: Tensor | None = None,
    seed: int = 0,
    layers: int = LAYERS,
) -> Target:
    """Write a target to `folder`. kind: llama, llama-tied, gpt2 or gemma2 (the last two are tied).

    `logits` [V, V]: instead of a deterministic language, the exact logits after each token (kind llama).
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(kind, layers), dtype=torch.float32).eval()
    successor = cycle(VOCAB, subset, seed)
    with torch.no_grad():
        _randomise(model, kind)
        if kind == "llama":
            states = model.model(torch.arange(VOCAB)[:, None]).last_hidden_state[:, 0]
            wanted = logits if logits is not None else 20 * torch.eye(VOCAB)[successor]
            model.lm_head.weight.copy_((torch.linalg.pinv(states) @ wanted).T)
        else:
            _solve_last_mlp(model, kind, successor)
    model.save_pretrained(folder)
    return Target(Path(folder), model, successor)


def _config(kind: str, layers: int) -> LlamaConfig | GPT2Config | Gemma2Config:
    common = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind == "gpt2":
        return GPT2Config(**common, n_embd=WIDTH, n_layer=layers, n_head=8, n_positions=512)
    decoder = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 512,
    }
    if kind == "gemma2":
        return Gemma2Config(**common, **decoder, query_pre_attn_scalar=32, sliding_window=64)
    return LlamaConfig(**common, **decoder, tie_word_embeddings=kind == "llama-tied")


def _randomise(model: PreTrainedModel, kind: str) -> None:
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "attn.c_proj" in name or "wpe" in name:
            parameter.zero_()
        elif parameter.dim() == 1 and "norm" in name and kind.startswith("llama"):
            parameter.copy_(torch.rand_like(parameter) + 0.5)
        elif parameter.dim() == 2 and "proj" in name:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[-1] ** -0.5)
    embedding = model.get_input_embeddings().weight
    if kind == "llama":
        embedding.normal_()
        model.model.norm.weight.copy_(_signs(WIDTH))  # so that every hidden state has the same rms
    else:  # orthonormal, zero-mean rows: an exact tied lm_head
        rows = torch.randn(WIDTH, VOCAB)
        embedding.copy_(torch.linalg.qr(rows - rows.mean(0))[0].T)


def _solve_last_mlp(model: PreTrainedModel, kind: str, successor: Tensor) -> None:
    """Let the last MLP add so much of the next token's embedding that nothing else matters."""
    base = model.transformer if kind == "gpt2" else model.model
    layer = (base.h if kind == "gpt2" else base.layers)[-1]
    down = layer.mlp.c_proj if kind == "gpt2" else layer.mlp.down_proj
    seen: list[Tensor] = []
    hook = down.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 0]))
    base(torch.arange(VOCAB)[:, None])
    hook.remove()
    wanted = 60 * model.get_input_embeddings().weight[successor]
    if kind == "gpt2":
        down.weight.copy_(torch.linalg.pinv(seen[0]) @ wanted)
        down.bias.zero_()
    else:
        down.weight.copy_((torch.linalg.pinv(seen[0]) @ wanted).T)
    if kind == "gemma2":  # its norm behind the MLP sets the size; outweigh the scaled embedding
        layer.post_feedforward_layernorm.weight.fill_(3.0)


def _signs(size: int) -> Tensor:
    return torch.randint(0, 2, (size,)).float() * 2 - 1
