"""Decoder layers of draft heads on vLLM's parallel linear layers and paged attention.

vLLM's own Llama layers cannot express all of it: they tie the biases of q/k/v and o together, always
norm in front of the first layer, know no q/k norm and no activation but SiLU, and take over a target's window.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from transformers.activations import ACT2FN
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear

from ...configs import TransformerHeadConfig
from .rope import head_rope

#: The token dimension of each input, for vLLM's torch.compile.
DYNAMIC_ARG_DIMS = {"input_ids": 0, "positions": -1, "hidden_states": 0}


class DraftAttention(nn.Module):
    """Grouped-query attention over the draft's own paged KV; [T, width in] to [T, D]."""

    def __init__(self, head: TransformerHeadConfig, vllm_config: VllmConfig, prefix: str, input_width: int) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        self.head_dim = head.head_dim or head.hidden_size // head.num_attention_heads
        self.qkv_proj = QKVParallelLinear(
            input_width,
            self.head_dim,
            head.num_attention_heads,
            head.num_key_value_heads,
            bias=head.qkv_bias,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            head.num_attention_heads * self.head_dim, head.hidden_size, bias=head.o_bias, prefix=f"{prefix}.o_proj"
        )
        heads, kv_heads = head.num_attention_heads // ranks, max(1, head.num_key_value_heads // ranks)
        self.q_size, self.kv_size = heads * self.head_dim, kv_heads * self.head_dim
        self.qk_norm = head.qk_norm
        if head.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, eps=head.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, eps=head.rms_norm_eps)
        self.rotary_emb = head_rope(head, _max_positions(head, vllm_config))
        cache = copy.copy(vllm_config.cache_config)
        cache.sliding_window = None  # a target's own window; the head was trained with what its config says
        self.attn = Attention(
            heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=kv_heads,
            cache_config=cache,
            per_layer_sliding_window=head.sliding_window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, x: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(x)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], -1)
        if self.qk_norm:
            q = self.q_norm(q.view(*q.shape[:-1], -1, self.head_dim)).view(q.shape)
            k = self.k_norm(k.view(*k.shape[:-1], -1, self.head_dim)).view(k.shape)
        q, k = self.rotary_emb(positions, q, k)
        out, _ = self.o_proj(self.attn(q, k, v))
        return out


class ActAndMul(nn.Module):
    """The activation of the first half, times the second."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.act = ACT2FN[name]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return self.act(gate) * up


class DraftMLP(nn.Module):
    """Gated, as SwiGLU is; with the activation that the config names."""

    def __init__(self, head: TransformerHeadConfig, prefix: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            head.hidden_size, [head.intermediate_size] * 2, bias=head.mlp_bias, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(
            head.intermediate_size, head.hidden_size, bias=head.mlp_bias, prefix=f"{prefix}.down_proj"
        )
        self.act = SiluAndMul() if head.hidden_act == "silu" else ActAndMul(head.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gate_up_proj(x)
        out, _ = self.down_proj(self.act(x))
        return out


class DraftDecoderLayer(nn.Module):
    """Pre-norm decoder layer; agrees with `reference.layers.DecoderLayer`."""

    def __init__(
        self,
        head: TransformerHeadConfig,
        vllm_config: VllmConfig,
        prefix: str,
        input_norm: bool = True,
        input_width: int | None = None,
    ) -> None:
        super().__init__()
        self.self_attn = DraftAttention(head, vllm_config, f"{prefix}.self_attn", input_width or head.hidden_size)
        self.mlp = DraftMLP(head, f"{prefix}.mlp")
        if input_norm:
            self.input_layernorm = RMSNorm(head.hidden_size, eps=head.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(head.hidden_size, eps=head.rms_norm_eps)

    def forward(self, positions: Tensor, x: Tensor) -> Tensor:
        normed = self.input_layernorm(x) if hasattr(self, "input_layernorm") else x
        return self.attend(positions, x, normed)

    def attend(self, positions: Tensor, residual: Tensor, x: Tensor) -> Tensor:
        """The layer behind its input norm: attention over `x`, added to `residual`, then the MLP."""
        residual = residual + self.self_attn(positions, x)
        return residual + self.mlp(self.post_attention_layernorm(residual))


def layer_prefix(vllm_config: VllmConfig, prefix: str, index: int) -> str:
    """Name of draft layer `index`, counted on from the target's so that KV cache names stay distinct."""
    return f"{prefix}.layers.{vllm_config.model_config.get_total_num_hidden_layers() + index}"


def _max_positions(head: TransformerHeadConfig, vllm_config: VllmConfig) -> int:
    # A head shares the target's positions, whatever length it was trained with.
    return max(head.max_position_embeddings, vllm_config.model_config.max_model_len)
