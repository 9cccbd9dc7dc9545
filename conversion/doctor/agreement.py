"""How far a head's chains agree with the target's own text, and whether two readings of it really differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...configs import Eagle3Config, HeadConfig
from ...errors import HeadError
from ...reference import ReferenceHead, build_reference, unroll
from ...targets.observer import Observer, States, Text
from ..reading import Reading

DEPTH = 4
#: Neighbouring positions are alike; so many of them together count as one observation.
_BLOCK = 8
_ROWS = 8
#: Logits in memory at once.
_LOGITS = 1 << 27
#: Log-probabilities end here, so that no single token decides.
_UNLIKELY = -12.0


@dataclass(frozen=True)
class Batch:
    """Texts side by side [B, W], padded on the right, their states, and from where chains are judged."""

    ids: Tensor
    states: States
    #: [B, W - 1] positions whose whole chain is known text.
    judged: Tensor
    #: One number for each judged position: those with the same belong together.
    blocks: Tensor


@dataclass(frozen=True)
class Agreement:
    """Teacher-forced agreement at every judged position [N, depth], and how sure of it the head is."""

    hits: Tensor
    #: Log-probability that the head gives the target's token [N, depth].
    likelihood: Tensor
    blocks: Tensor

    @property
    def per_depth(self) -> list[float]:
        """Share of positions where the draft at each depth is the target's token, all before it given."""
        return self.hits.float().mean(0).tolist()

    @property
    def accepted(self) -> Tensor:
        """Drafts in front of the first that is not the target's token [N]: what an engine would accept."""
        return self.hits.int().cumprod(-1).sum(-1).float()

    @property
    def total(self) -> float:
        """Accepted drafts of a chain: what readings are ranked by."""
        return float(self.accepted.mean())

    def better_than(self, other: Agreement) -> float:
        """Standard errors by which more is accepted than of the other at the same positions."""
        # One position more or less never decides, however little the others vary.
        return self._errors(self.accepted - other.accepted, 1.0)

    def likelier_than(self, other: Agreement, depth: int = DEPTH) -> float:
        """The same for the likelihood of the target's text, which small differences show in first."""
        return self._errors(self.likelihood[:, :depth].sum(-1) - other.likelihood[:, :depth].sum(-1), 0.01)

    def _errors(self, gain: Tensor, least: float) -> float:
        _, block = self.blocks.unique(return_inverse=True)
        mean = float(gain.mean())
        spread = torch.zeros(int(block.max()) + 1).index_add_(0, block, gain - mean)
        return mean * len(gain) / max(float(spread.square().sum().sqrt()), least)

    def first(self, count: int) -> Agreement:
        """Of the first `count` positions alone."""
        return Agreement(self.hits[:count], self.likelihood[:count], self.blocks[:count])

    def joined(self, other: Agreement) -> Agreement:
        """Of the positions of both."""
        parts = zip(
            (self.hits, self.likelihood, self.blocks), (other.hits, other.likelihood, other.blocks), strict=True
        )
        return Agreement(*(torch.cat(pair) for pair in parts))


class Material:
    """The target's own texts with all that any reading of the head may be fed."""

    def __init__(self, observer: Observer, texts: Sequence[Text], layers: set[int], depth: int = DEPTH) -> None:
        self.texts, self.depth = [t for t in texts if len(t.answer) > depth], depth
        if not self.texts:
            raise HeadError(
                f"the target {observer.target.name} wrote {len(texts)} answers of up to {depth} tokens",
                "Chains are compared with longer texts",
                "Pass other --prompts",
            )
        self.target, self.device = observer.target, observer.device
        self._observer, self._layers = observer, set(layers)
        self.embedding = self.target.embedding.load().float().to(self.device)
        self.lm_head = self.target.lm_head.load().float().to(self.device)
        self.batches: list[Batch] = []
        for at in range(0, len(self.texts), _ROWS):
            self.batches.append(_batch(observer, self.texts[at : at + _ROWS], layers, depth, at))

    @property
    def part(self) -> int:
        """Batches that a first look takes."""
        return max(1, round(len(self.batches) / 4))

    @property
    def positions(self) -> int:
        return sum(int(b.judged.sum()) for b in self.batches)

    def need(self, layers: set[int]) -> None:
        """Compute the streams of these layers too, if they are not there yet."""
        missing = layers - self._layers
        if missing:
            for batch in self.batches:
                batch.states.streams.update(self._observer.states(batch.ids[:, :-1], missing).streams)
            self._layers |= missing

    @property
    def floor(self) -> float:
        """Agreement of always drafting the most frequent token."""
        answers = torch.tensor([token for text in self.texts for token in text.answer])
        return float(answers.bincount().max() / len(answers))

    @torch.inference_mode()
    def measure(self, reading: Reading, reads: str, batches: slice, depth: int = DEPTH) -> Agreement:
        """Agreement of the head under `reading` on some batches; `reads`: see `Change`."""
        depth = min(depth, self.depth, reading.config.max_draft_tokens or self.depth)
        if not self.batches[batches]:
            nothing = torch.empty(0, depth)
            return Agreement(nothing.bool(), nothing, torch.empty(0, dtype=torch.long))
        head = self.head(reading)
        found = [self._measure(head, batch, reads, depth) for batch in self.batches[batches]]
        hits, likelihood = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Agreement(hits, likelihood, torch.cat([b.blocks for b in self.batches[batches]]))

    def head(self, reading: Reading) -> ReferenceHead:
        """The reference of a reading; tables of the target are lent once for all."""
        with torch.device("meta"):
            head = build_reference(reading.config)
        weights = {n: t.load() if n == "d2t" else t.load().float() for n, t in reading.tensors.items()}
        head.load_state_dict({n: t.to(self.device) for n, t in weights.items()}, assign=True)
        head.attach_target(self.embedding, self.lm_head)
        return head.eval()

    def _measure(self, head: ReferenceHead, batch: Batch, reads: str, depth: int) -> tuple[Tensor, Tensor]:
        hidden = handed_over(head.config, batch.states, reads, self.target.num_layers)
        text = torch.nn.functional.pad(batch.ids, (0, depth + 1))
        width = batch.ids.shape[1] - 1
        slots = torch.full((head.config.vocab_size,), -1, device=self.device)  # where a token stands in the logits
        drafted = head.target_ids(torch.arange(head.config.draft_vocab, device=self.device))
        slots[drafted] = torch.arange(len(drafted), device=self.device)
        hits, likelihood = [], []
        for step, state in enumerate(unroll(head, batch.ids, hidden.float(), depth, text=text)):
            wanted = text[:, step + 2 : step + 2 + width][batch.judged]
            features = state.features[batch.judged]
            size = max(1, _LOGITS // len(drafted))
            found = [
                _judge(head.logits(f), slots[w]) for f, w in zip(features.split(size), wanted.split(size), strict=True)
            ]
            hits.append(torch.cat([h for h, _ in found]))
            likelihood.append(torch.cat([p for _, p in found]))
        return torch.stack(hits, -1).cpu(), torch.stack(likelihood, -1).cpu()


def _judge(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each row drafts the wanted slot (-1: not drafted at all), and its log-probability, bounded below."""
    hits = logits.argmax(-1) == wanted
    chosen = logits.gather(-1, wanted.clamp_min(0)[:, None])[:, 0] - logits.logsumexp(-1)
    return hits, torch.where(wanted < 0, _UNLIKELY, chosen.clamp_min(_UNLIKELY))


def handed_over(config: HeadConfig, states: States, reads: str, layers: int) -> Tensor:
    """What a head of `config` reads of the target, [B, T, *]."""
    if not (isinstance(config, Eagle3Config) and config.use_aux_hidden_state):
        return states.streams[layers] if reads == "before_norm" else states.last
    ids = config.eagle_aux_hidden_state_layer_ids or []
    return torch.cat([states.last if i == layers and reads == "behind_norm" else states.streams[i] for i in ids], -1)


def expected_length(agreement: Agreement, k: int = 3) -> float:
    """1 + accepted / drafts of an engine that drafts k tokens, keeps those that agree, and goes on behind them.

    Walks each text from its first positions, so that chance in where the walk starts averages out.
    """
    chain = agreement.hits[:, :k].int().cumprod(-1).sum(-1).tolist()
    texts_of = (agreement.blocks >> 16).tolist()
    starts = [i for i in range(len(chain)) if i == 0 or texts_of[i] != texts_of[i - 1]]
    drafts = accepted = 0
    for start, end in zip(starts, [*starts[1:], len(chain)], strict=True):
        for first in range(start, min(start + k + 1, end)):
            at = first
            while at < end:
                drafts, accepted = drafts + 1, accepted + chain[at]
                at += chain[at] + 1
    return 1 + accepted / max(1, drafts)


def _batch(observer: Observer, texts: Sequence[Text], layers: set[int], depth: int, first: int) -> Batch:
    width = max(len(t.tokens) for t in texts)
    ids = torch.tensor([t.tokens + [0] * (width - len(t.tokens)) for t in texts], device=observer.device)
    judged = torch.zeros(len(texts), width - 1, dtype=torch.bool, device=observer.device)
    for row, text in enumerate(texts):
        # The chain from p drafts p + 2 to p + 1 + depth, behind the first token the target wrote.
        judged[row, len(text.prompt) - 1 : max(0, len(text.tokens) - 1 - depth)] = True
    rows, positions = judged.nonzero().cpu().unbind(1)
    blocks = ((first + rows) << 16) + positions // _BLOCK
    return Batch(ids, observer.states(ids[:, :-1], layers), judged, blocks)
