"""The part all heads share: embedding in, vocabulary out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configs import HeadConfig
from ..errors import HeadError
from .memory import ChainMemory


class ReferenceHead(nn.Module):
    """A draft head. Subclasses say how `(token, hidden)` becomes the next feature.

    Shapes: B sequences of T positions. V target vocabulary, Vd draft vocabulary.
    """

    d2t: Tensor | None
    target_embedding: Tensor | None
    target_lm_head: Tensor | None
    target_lm_head_bias: Tensor | None

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        if config.own_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embed_width)
        if config.own_lm_head:
            self.lm_head = nn.Linear(config.lm_head_width, config.draft_vocab, bias=config.lm_head_bias)
        # Draft id i is target id i + d2t[i], as in the EAGLE-3 release.
        self.register_buffer("d2t", torch.zeros(config.draft_vocab, dtype=torch.long) if config.reduced_vocab else None)
        for name in ("target_embedding", "target_lm_head", "target_lm_head_bias"):
            self.register_buffer(name, None, persistent=False)

    def attach_target(self, embedding: Tensor, lm_head: Tensor, lm_head_bias: Tensor | None = None) -> None:
        """Lend the head the target's embedding [V, H] and lm_head [V, H], where it has none of its own."""
        self.target_embedding, self.target_lm_head, self.target_lm_head_bias = embedding, lm_head, lm_head_bias

    def embed(self, tokens: Tensor) -> Tensor:
        """[..] token ids to [.., E] embeddings, scaled as the target's family does."""
        table = self.embed_tokens.weight if self.config.own_embedding else self.target_embedding
        if table is None:
            raise HeadError("this head uses the target's embedding", "", "Call attach_target() first")
        return nn.functional.embedding(tokens, table) * self.config.embed_scale

    def logits(self, out: Tensor) -> Tensor:
        """[.., lm_head width] to [.., Vd] logits over the draft vocabulary."""
        if self.config.own_lm_head:
            logits = self.lm_head(out)
        elif self.target_lm_head is None:
            raise HeadError("this head uses the target's lm_head", "", "Call attach_target() first")
        else:
            logits = nn.functional.linear(out, self.target_lm_head, self.target_lm_head_bias)
        if cap := self.config.logit_softcap:
            logits = torch.tanh(logits / cap) * cap
        return logits * self.config.logit_scale

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Draft-vocabulary ids to target ids."""
        return draft_ids if self.d2t is None else draft_ids + self.d2t[draft_ids]

    def fuse(self, hidden: Tensor) -> Tensor:
        """What the target hands over, [B, T, *], to the state the first step reads, [B, T, D]."""
        return hidden

    def next_inputs(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What a chain's later steps are fed: the token drafted before, [B, T], and the state fed back."""
        return tokens, state

    def new_memory(self, positions: Tensor) -> ChainMemory:
        """Empty keys and values for one pass over a prefix at `positions` [B, T] and its chains."""
        return ChainMemory(positions)

    def forward(self, tokens: Tensor, hidden: Tensor, memory: ChainMemory) -> tuple[Tensor, Tensor]:
        """One step of a chain at every position: tokens [B, T], hidden [B, T, D].

        Returns what goes into the lm_head and what the next step is fed.
        """
        raise NotImplementedError
