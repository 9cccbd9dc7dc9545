"""A small random Llama target whose next token depends on the whole text, and random heads for it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_eagle_plugin.configs import AttentionFreeConfig, Eagle3Config, EagleConfig, HeadConfig
from vllm_eagle_plugin.reference import ReferenceHead, build_reference

VOCAB, WIDTH = 512, 128


def heads(vocab: int = VOCAB) -> dict[str, HeadConfig]:
    """Heads with everything switched on that their family has, for a target of `vocab` tokens."""
    base = {"vocab_size": vocab, "hidden_size": WIDTH}
    decoder = {**base, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256}
    eagle3 = {**decoder, "eagle_aux_hidden_state_layer_ids": [1, 3, 5], "own_lm_head": True}
    reduced = {"draft_vocab_size": vocab * 3 // 5}
    return {
        "feature": AttentionFreeConfig(
            **base, input_projection=WIDTH, num_blocks=2, block_residual=True, output_projection=True
        ),
        "surgery": AttentionFreeConfig(**base, use_hidden=False, num_blocks=2, block_activation="relu"),
        "projection": AttentionFreeConfig(
            **base, use_embedding=False, input_projection=WIDTH, input_activation="silu", own_lm_head=True,
            lm_head_bias=True,
        ),
        "eagle": EagleConfig(**decoder),
        "eagle-everything": EagleConfig(
            **decoder, **reduced, fc_bias=True, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True,
            embed_norm=True, hidden_norm=True, input_norm=True, output_norm=True, num_hidden_layers=2,
            own_lm_head=True, own_embedding=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        "eagle3": Eagle3Config(**eagle3),
        "eagle3-everything": Eagle3Config(
            **eagle3, **reduced, fc_bias=True, qkv_bias=True, o_bias=True, qk_norm=True, norm_before_fc=True,
            fc_norm=True, norm_before_residual=True, feedback="post_norm", num_hidden_layers=2,
            rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        ),
    }  # fmt: skip


HEADS = heads()


def random_target(folder: Path, vocab: int = VOCAB, **changes: Any) -> LlamaForCausalLM:
    """Write a target with attention that matters; its greedy text does not settle into a loop at once."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": vocab, "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **changes,
        }
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return model


def random_prompts(count: int, longest: int, vocab: int = VOCAB, seed: int = 0) -> list[list[int]]:
    """Prompts of mixed lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab) for _ in range(rng.randint(3, longest))] for _ in range(count)]


def random_head(config: HeadConfig, model: LlamaForCausalLM) -> ReferenceHead:
    """A head of `config` with random weights of a size that makes all of them matter."""
    return fill(config, model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach())


def fill(config: HeadConfig, embedding: Tensor, lm_head: Tensor) -> ReferenceHead:
    """Such a head for a target with these tables."""
    torch.manual_seed(1)
    head = build_reference(config).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            scale = parameter.shape[1] ** -0.5 if parameter.dim() == 2 else 0.3
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=1.5 * scale)
        if config.reduced_vocab:
            ids = torch.randperm(config.vocab_size)[: config.draft_vocab].sort().values
            head.d2t.copy_(ids - torch.arange(config.draft_vocab))
    head.attach_target(embedding, lm_head)
    return head
