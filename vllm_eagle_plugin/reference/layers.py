"""Llama-style layers that draft a chain from every position of a prefix at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..configs import TransformerHeadConfig
from .memory import ChainMemory
from .rope import rotate


class Attention(nn.Module):
    """Grouped-query attention with RoPE, perhaps within a window; [B, T, width in] to [B, T, D]."""

    def __init__(self, config: TransformerHeadConfig, layer: int, input_width: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.window = config.sliding_window
        self.head_dim = config.head_dim or config.hidden_size // self.heads
        self.q_proj = nn.Linear(input_width, self.heads * self.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(input_width, self.kv_heads * self.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(input_width, self.kv_heads * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=config.o_bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], memory: ChainMemory) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        repeat = self.heads // self.kv_heads
        q, k, v = (t.transpose(1, 2) for t in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)))
        (prefix_k, prefix_v), *chain = memory.extend(self.layer, k, v)

        scale = self.head_dim**-0.5
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if self.window is not None:  # of the positions where the queries stand, one further with each step
            seen = seen.triu(len(chain) - self.window + 1)
            chain = chain[-self.window :]
        scores = [(q @ prefix_k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))]
        scores += [(q * step_k).sum(-1, keepdim=True) * scale for step_k, _ in chain]
        weights = torch.cat(scores, -1).softmax(-1)
        out = weights[..., :length] @ prefix_v
        for i, (_, step_v) in enumerate(chain):
            out = out + weights[..., length + i, None] * step_v
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """Gated, as SwiGLU is; with the activation that the config names."""

    def __init__(self, config: TransformerHeadConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer. `input_norm` False leaves out the norm in front of the attention."""

    def __init__(
        self, config: TransformerHeadConfig, layer: int, input_norm: bool = True, input_width: int | None = None
    ) -> None:
        super().__init__()
        eps = config.rms_norm_eps
        self.self_attn = Attention(config, layer, input_width or config.hidden_size)
        self.mlp = MLP(config)
        if input_norm:
            self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], memory: ChainMemory) -> Tensor:
        normed = self.input_layernorm(x) if hasattr(self, "input_layernorm") else x
        return self.attend(x, normed, rope, memory)

    def attend(self, residual: Tensor, x: Tensor, rope: tuple[Tensor, Tensor], memory: ChainMemory) -> Tensor:
        """The layer behind its input norm: attention over `x`, added to `residual`, then the MLP."""
        residual = residual + self.self_attn(x, rope, memory)
        return residual + self.mlp(self.post_attention_layernorm(residual))
