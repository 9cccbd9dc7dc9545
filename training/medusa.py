"""Medusa heads (arXiv 2401.10774), to compare with: vLLM serves them itself, so nothing else here knows them.

Head j reads the target's last hidden state at position p and says what stands at p + 2 + j, without knowing
what the heads before it said: there is no chain, and drafting costs one small matrix product for each.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..configs import HeadConfig
from ..errors import HeadError
from ..reference import ReferenceHead
from ..reference.memory import ChainMemory


class MedusaConfig(HeadConfig):
    """`num_heads` stacks of `num_hidden_layers` residual blocks, all read by the target's lm_head.

    Lm_heads of their own would be many times larger than the rest. A smaller vocabulary with vLLM's token map is
    no way out: its 0.32 does not load one ("weights were not initialized from checkpoint: {'token_map'}").
    """

    model_type = "medusa"
    method = "medusa"
    architecture = "MedusaModel"

    num_heads: int = 0
    num_hidden_layers: int = 1

    @property
    def reads_embedding(self) -> bool:
        return False

    @property
    def max_draft_tokens(self) -> int | None:
        return self.num_heads

    def validate_head(self) -> None:
        super().validate_head()
        if self.num_heads < 1 or self.num_hidden_layers < 1:
            raise HeadError(f"{self.num_heads} heads of {self.num_hidden_layers} blocks", "At least one was expected")


class ResidualBlocks(nn.Module):
    """`x = x + silu(W x + b)`, so many times over. W and b start at 0: an untrained head says what the target does."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        for layer in self.layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + nn.functional.silu(layer(x))
        return x


class MedusaHead(ReferenceHead):
    """See `MedusaConfig`; step j of a chain is head j, all of them reading the state at its start."""

    config: MedusaConfig

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(
            ResidualBlocks(config.hidden_size, config.num_hidden_layers) for _ in range(config.num_heads)
        )

    def forward(self, tokens: Tensor, hidden: Tensor, memory: ChainMemory) -> tuple[Tensor, Tensor]:
        out = self.blocks[memory.steps](hidden)
        memory.steps += 1
        return out, hidden


def described(config: HeadConfig) -> dict[str, Any]:
    """The config.json that vLLM reads."""
    assert isinstance(config, MedusaConfig)
    return {
        "architectures": [config.architecture],
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_heads": config.num_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "original_lm_head": True,  # the target's, for all heads
        "medusa_fc_bias": True,
        "torch_dtype": "bfloat16",
    }
