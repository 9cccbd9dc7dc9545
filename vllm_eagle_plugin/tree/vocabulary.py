"""What a head can draft, and its logits over just that.

A head with a vocabulary of its own scatters its logits over the target's whole one, nearly all of it -inf, where
whoever wants probabilities and the best few of them then has to look. That takes longer than the head's own lm_head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DraftVocabulary:
    """A head's draft vocabulary: ours, and stock ones that vLLM's `draft_id_to_target_id` describes."""

    def __init__(self, model: Any):
        self._model = model
        self._checked = False
        #: [Vd] the target's id of each draft; None where logits are over the target's vocabulary.
        self.ids: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """[T, Vd] of features [T, D], or [T, V] where `ids` is None."""
        if not self._checked:
            return self._check(features)
        return self._model.compute_logits(features) if self.ids is None else self._drafted(features)

    def _check(self, features: Tensor) -> Tensor:
        """The first logits: by both ways, and the short one from then on where it says the same."""
        self._checked, everything, ids = True, self._model.compute_logits(features), self._known()
        if ids is None:
            return everything
        drafted = self._drafted(features)
        there = torch.zeros(everything.shape[-1], dtype=torch.bool, device=ids.device)
        there[ids] = True
        if torch.equal(everything[..., ids], drafted) and everything[..., ~there].isneginf().all():
            self.ids = ids
            return drafted
        return everything

    def _known(self) -> Tensor | None:
        ids = getattr(self._model, "target_ids", None)
        offsets = getattr(self._model, "draft_id_to_target_id", None)
        if ids is None and offsets is not None and hasattr(self._model, "logits_processor"):
            ids = torch.arange(len(offsets), device=offsets.device) + offsets.data
        return ids

    def _drafted(self, features: Tensor) -> Tensor:
        if hasattr(self._model, "draft_logits"):
            return self._model.draft_logits(features)
        return self._model.logits_processor(self._model.lm_head, features)
