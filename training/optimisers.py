"""What moves the weights: Muon for the matrices inside a head, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import nn

from .recipe import Optimiser


def optimisers(head: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """Optimisers over all trainable parameters of `head`.

    Muon (Jordan et al. 2024; `torch.optim.Muon`) orthogonalises the update of a whole matrix. Its updates are scaled
    to the root mean square of AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate serves both. Tables
    of tokens are no such matrices: each of their rows is a token of its own.
    """
    named = [(name, p) for name, p in head.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if settings.muon and p.ndim == 2 and not _is_table(name)]
    held = {id(p) for p in inner}
    others = [p for _, p in named if id(p) not in held]
    found: list[torch.optim.Optimizer] = []
    if inner:
        found.append(
            torch.optim.Muon(
                inner,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        found.append(
            torch.optim.AdamW(
                others,
                lr=settings.learning_rate,
                betas=(settings.beta1, settings.beta2),
                weight_decay=settings.weight_decay,
            )
        )
    return found


def _is_table(name: str) -> bool:
    return "lm_head" in name or "embed_tokens" in name
