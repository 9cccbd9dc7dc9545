"""Trying other readings of a head: one change at a time, then what goes together, and only what chance cannot explain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ...errors import HeadError, UsageError
from ...targets.target import Target
from ..detect import Detection
from ..options import Options
from ..reading import Reading
from ..source import Source
from ..understand import understand
from .agreement import Agreement, Material
from .changes import Change, alternatives, resolutions
from .flags import reading_key

#: Standard errors that a better reading must be ahead by: some thirty are tried, so that chance alone would
#: pass less than one doctor's visit in a hundred.
SURE = 3.3
#: Log-likelihood for each position that a likelier reading must gain, however sure that is.
_LEAST_GAIN = 0.01
#: Families whose faults show on their own, so that they are not tried in pairs.
_ALONE = ("feedback", "RoPE base", "RoPE scaling", "attention heads")
_PAIRS_KEPT = 6


@dataclass
class Candidate:
    """A reading of the head, and how well it agrees with the target."""

    changes: tuple[Change, ...]
    options: Options
    detection: Detection
    reading: Reading
    key: str
    agreement: Agreement | None = None
    #: Measured on all positions, not only on the first part of them.
    whole: bool = False

    @property
    def reads(self) -> str:
        return next((c.reads for c in reversed(self.changes) if c.reads != "last"), "last")

    @property
    def says(self) -> str:
        return ", ".join(change.says for change in self.changes) or "as it is read now"

    def measured(self) -> Agreement:
        assert self.agreement is not None
        return self.agreement


@dataclass
class Outcome:
    """What a search found."""

    #: The head as it is read now; None if its reader refuses to guess.
    current: Candidate | None
    refusal: HeadError | None
    best: Candidate
    tried: list[Candidate] = field(default_factory=list)


class Search:
    """All readings of one head for one target."""

    def __init__(
        self,
        source: Source,
        target: Target,
        base: Options,
        material: Callable[[set[int]], Material],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.source, self.target, self.base, self._tell = source, target, base, tell
        self._material_for = material
        self._known: dict[str, Candidate] = {}

    def run(self) -> Outcome:
        """Find the reading that agrees best.

        Raises:
            HeadError: no reading fits at all.
        """
        refusal, current = None, None
        try:
            current = self._candidate(())
        except UsageError:
            raise
        except HeadError as error:
            refusal = error
        starts = [current] if current is not None else self._resolved(refusal)
        self.material = self._material_for(self._layers(starts))
        self._race(starts, None)
        best = self._pick(starts)
        while True:
            near = self._neighbours(best)
            self.material.need(self._layers(near))
            self._race(near, best)
            better = [c for c in near if c.whole and self.beats(c, best)]
            if not better and self.hopeless(best):
                better = [c for c in self._pairs(best, near) if self.beats(c, best)]
            if not better:
                break
            best = self._pick(better)
        return Outcome(current, refusal, self._without_idle_changes(best), list(self._known.values()))

    def beats(self, one: Candidate, other: Candidate) -> bool:
        """Whether one reading is better for sure: more is accepted, or as much and it is surer of the text."""
        a, b = one.measured(), other.measured()
        if b.total > 0.995 * b.hits.shape[1]:
            return False  # nothing is left to gain
        ahead, likelier = a.better_than(b), a.likelier_than(b)
        gain = float((a.likelihood.sum(-1) - b.likelihood.sum(-1)).mean())
        # Where more is accepted although the first token is less likely, chance had a hand in it.
        return (ahead >= SURE and a.likelier_than(b, depth=1) > -SURE) or (
            likelier >= SURE and ahead > -1.5 and gain > _LEAST_GAIN
        )

    def hopeless(self, candidate: Candidate) -> bool:
        """Whether even first drafts agree about as little as drafting one frequent token always would."""
        return candidate.measured().per_depth[0] < max(0.15, 1.5 * self.material.floor)

    def _candidate(self, changes: Sequence[Change]) -> Candidate:
        options = functools.reduce(lambda o, change: change.of(o), changes, self.base)
        detection, reading = understand(self.source, self.target, options)
        new = Candidate(tuple(changes), options, detection, reading, "")
        new.key = reading_key(reading, new.reads)
        found = self._known.setdefault(new.key, new)
        if len(new.changes) < len(found.changes):  # the same, asked for in fewer words
            found.changes, found.options = new.changes, new.options
        return found

    def _candidates(self, lists: Iterable[Sequence[Change]]) -> list[Candidate]:
        """Those that can be read, each meaning once."""
        found: dict[str, Candidate] = {}
        for changes in lists:
            try:
                candidate = self._candidate(changes)
            except HeadError:
                continue  # does not fit the head
            found.setdefault(candidate.key, candidate)
        return list(found.values())

    def _resolved(self, refusal: HeadError | None) -> list[Candidate]:
        changes = resolutions(self.source, self.target)
        found = self._candidates([c] for c in changes)
        if not found:
            found = self._candidates([a, b] for a in changes for b in changes if a.family < b.family)
        if not found and refusal is not None:
            raise refusal
        return found

    def _neighbours(self, best: Candidate) -> list[Candidate]:
        reader = best.detection.reader
        changes = alternatives(self.source, self.target, reader, best.reading, best.options)
        found = self._candidates(_with(best.changes, change) for change in changes)
        return [c for c in found if c.key != best.key]

    def _pairs(self, best: Candidate, near: list[Candidate]) -> list[Candidate]:
        """Two changes at once, where none alone helps: screened on a few first drafts, the best measured whole."""
        lists = []
        for first in near:
            if not first.changes:  # back to the reading that the search began with
                continue
            change = first.changes[-1]
            if change.family in _ALONE or first.reads != "last":
                continue
            for second in alternatives(self.source, self.target, first.detection.reader, first.reading, first.options):
                if second.family not in (*_ALONE, change.family) and second.reads == "last":
                    lists.append(_with(first.changes, second))
        pairs = [c for c in self._candidates(lists) if c.agreement is None]
        self.material.need(self._layers(pairs))
        scored = []
        for number, pair in enumerate(pairs):
            self._tell(f"pairs of changes, {number + 1} of {len(pairs)}")
            found = self.material.measure(pair.reading, pair.reads, slice(0, 1), depth=1)
            scored.append((found.total, float(found.likelihood.mean()), number))
        kept = [pairs[number] for *_, number in sorted(scored, reverse=True)[:_PAIRS_KEPT]]
        self._race(kept, None)
        return kept

    def _race(self, candidates: Sequence[Candidate], best: Candidate | None) -> None:
        """Measure on a part of the positions, and those that may be better than `best` on all."""
        part = self.material.part
        for number, c in enumerate(candidates):
            if c.whole:
                continue
            self._tell(f"{c.says} ({number + 1} of {len(candidates)})")
            found = c.agreement or self.material.measure(c.reading, c.reads, slice(0, part))
            c.agreement = found
            if best is not None:
                mark = best.measured().first(len(found.hits))
                if max(found.better_than(mark), found.likelier_than(mark)) < 0:
                    continue
            c.agreement = found.joined(self.material.measure(c.reading, c.reads, slice(part, None)))
            c.whole = True

    def _pick(self, candidates: Sequence[Candidate]) -> Candidate:
        """The one that agrees most; among those that agree as much, the one that is surest of the text."""
        whole = [c for c in candidates if c.whole]
        top = max(whole, key=lambda c: c.measured().total)
        equal = [c for c in whole if c.measured().better_than(top.measured()) > -1.5]
        return max(equal, key=lambda c: float(c.measured().likelihood.mean()))

    def _without_idle_changes(self, best: Candidate) -> Candidate:
        """Leave out changes without which the head agrees as much."""
        for change in best.changes:
            fewer = self._candidates([[c for c in best.changes if c is not change]]) if len(best.changes) > 1 else []
            for candidate in fewer:
                self.material.need(self._layers([candidate]))
                self._race([candidate], None)
                if candidate is best or len(candidate.changes) >= len(best.changes):
                    continue
                if candidate.whole and not self.beats(best, candidate):
                    return self._without_idle_changes(candidate)
        return best

    def _layers(self, candidates: Iterable[Candidate]) -> set[int]:
        """Streams that these readings are fed."""
        found: set[int] = set()
        for c in candidates:
            found |= set(getattr(c.reading.config, "eagle_aux_hidden_state_layer_ids", None) or ())
            if c.reads == "before_norm":
                found.add(self.target.num_layers)
        return found


def _with(changes: Sequence[Change], new: Change) -> list[Change]:
    """`new` behind `changes`, without those that it takes the place of."""
    return [
        c
        for c in changes
        if c.family != new.family and (c.drop or c.flags or set(c.options) != set(new.options) or not c.options)
    ] + [new]
