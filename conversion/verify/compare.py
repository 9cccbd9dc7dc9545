"""A reference head beside the head under test: logits at every step of a chain, drafts token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...reference import ReferenceHead, unroll
from ...targets.observer import Observer
from ...targets.stand_in import StandIn
from ..doctor.agreement import handed_over

#: Mean difference of logits, against their spread, up to which two heads are one: rounding alone, in fp32
#: and where either side computes in half precision.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class Drafted:
    """One text, and what the head under test drafted from some of its positions."""

    tokens: list[int]
    #: Position of the last token whose hidden state the head read: drafts, and their logits [k, Vd].
    at: dict[int, tuple[list[int], Tensor]]
    #: What later steps were fed, by position [*, k]; None: the drafts.
    fed: Tensor | None = None


@dataclass
class Figures:
    """Differences over all positions, step by step."""

    steps: int
    positions: int = 0
    #: Positions whose drafts are the reference's to the token, and those that differ where the reference ties.
    equal: int = 0
    ties: int = 0
    maximum: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    argmax: list[float] = field(default_factory=list)
    spread: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Three digits: the same conversion gives the same figures."""
        return {
            "positions": self.positions,
            "drafts_equal": self.equal,
            "drafts_tied": self.ties,
            "logits": [
                {
                    "step": i + 1,
                    "max_difference": _short(m),
                    "mean_difference": _short(a),
                    "argmax_agreement": _short(g),
                }
                for i, (m, a, g) in enumerate(zip(self.maximum, self.mean, self.argmax, strict=True))
            ],
            "logits_spread": _short(self.spread),
        }


def layers_of(head: ReferenceHead) -> set[int]:
    """Streams of the target that a head reads."""
    return set(getattr(head.config, "eagle_aux_hidden_state_layer_ids", None) or ())


@torch.inference_mode()
def compare(
    head: ReferenceHead, observer: Observer | StandIn, drafted: Sequence[Drafted], steps: int, tolerance: float
) -> Figures:
    """`head` against what was drafted, fed the same tokens at every step."""
    figures = Figures(steps)
    worst, total, agreed = torch.zeros(steps), torch.zeros(steps), torch.zeros(steps)
    spreads: list[float] = []
    for text in drafted:
        ids = torch.tensor([text.tokens])
        states = observer.states(ids[:, :-1], layers_of(head))
        hidden = handed_over(head.config, states, "last", observer.target.num_layers).float().cpu()
        at = torch.tensor(sorted(p for p in text.at if p < ids.shape[1] - 1), dtype=torch.long)
        if not len(at):
            continue
        theirs = torch.tensor([text.at[p][0] for p in at.tolist()])
        logits = torch.stack([text.at[p][1] for p in at.tolist()])  # [n, k, Vd]

        fed = torch.zeros(1, ids.shape[1] - 1, steps, dtype=torch.long)
        fed[0, at] = theirs if text.fed is None else text.fed[at]
        equal = fair = torch.ones(len(at), dtype=torch.bool)
        for step, state in enumerate(unroll(head, ids, hidden, steps, fed=fed)):
            ours = head.logits(state.features[0, at])
            difference = (ours - logits[:, step].float()).abs()
            worst[step] = max(float(worst[step]), float(difference.max()))
            total[step] += float(difference.mean(-1).sum())
            spreads.append(float(ours.std()))
            drafts = head.target_ids(ours.argmax(-1))
            hit = drafts == theirs[:, step]
            agreed[step] += float(hit.sum())
            # A draft that differs where the reference's first two logits are equal but for rounding is as good.
            top = ours.topk(2).values
            close = (top[:, 0] - top[:, 1]) <= 4 * tolerance * spreads[-1]
            equal, fair = equal & hit, fair & (hit | close)
        figures.positions += len(at)
        figures.equal += int(equal.sum())
        figures.ties += int((fair & ~equal).sum())
    count = max(1, figures.positions)
    figures.maximum, figures.mean = worst.tolist(), (total / count).tolist()
    figures.argmax, figures.spread = (agreed / count).tolist(), max(spreads, default=0.0)
    return figures


def _short(value: float) -> float:
    return float(f"{value:.3g}")
