"""From a head and its target to a verdict in one sentence, with the options that put it right."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import HeadError
from ...targets.observer import Observer, read_turns
from ...targets.target import Target, read_target
from ..options import Options
from ..understand import open_source
from .agreement import Material, expected_length
from .findings import Finding, look
from .flags import as_flags, changed_options
from .search import SURE, Candidate, Outcome, Search

#: How much the target writes for itself: enough for one percent of agreement to show.
_PROMPTS, _ANSWER = 28, 80
#: Acceptance length at k = 3 below which a sound head is called weak.
_WEAK = 2.0


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a head, if anything is, and what was measured."""

    head: str
    target: Target
    outcome: Outcome
    findings: list[Finding]
    #: sound, weak, repairable, other-target or beyond-repair.
    kind: str
    verdict: str
    #: Options of `convert` beyond those given to the doctor, and the whole command; empty if there are none.
    flags: str
    command: str
    threads: str
    #: Acceptance length to expect at k = 3 (fewer where the head cannot draft so many) with these options.
    expected_length: float
    positions: int
    floor: float

    @property
    def sound(self) -> bool:
        return self.kind in ("sound", "weak")

    @property
    def rows(self) -> list[Candidate]:
        """Everything measured, best first: what agrees more, then what is surer of the text."""
        tried = [c for c in self.outcome.tried if c.agreement is not None]
        return sorted(tried, key=_rank(self.outcome), reverse=True)

    def as_json(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "target": self.target.name,
            "verdict": self.kind,
            "sentence": self.verdict,
            "flags": self.flags,
            "convert": self.command,
            "threads": self.threads,
            "expected_acceptance_length": round(self.expected_length, 3),
            "num_speculative_tokens": 3,
            "positions": self.positions,
            "most_frequent_token": round(self.floor, 4),
            "refused": str(self.outcome.refusal) if self.outcome.refusal else None,
            "findings": [vars(finding) for finding in self.findings],
            "readings": [self._row(c) for c in self.rows],
        }

    def _row(self, c: Candidate) -> dict[str, Any]:
        found = c.measured()
        return {
            "reading": c.says,
            "flags": as_flags(c.options),
            "current": c is self.outcome.current,
            "best": c is self.outcome.best,
            "agreement": [round(x, 4) for x in found.per_depth],
            "log_likelihood": [round(x, 4) for x in found.likelihood.mean(0).tolist()],
            "expected_acceptance_length": round(expected_length(found), 3),
            "positions": len(found.hits),
        }


def diagnose(
    head: str | Path,
    target: str,
    options: Options | None = None,
    prompts: Path | None = None,
    also: Sequence[str] = (),
    config: Path | None = None,
    revision: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
    material: Callable[[Target, set[int]], Material] | None = None,
) -> Diagnosis:
    """Measure `head` on text of its target (and of others it may be of) under every reading that fits.

    `material` gives the target's text with the streams of some layers, by default what it writes now.

    Raises:
        HeadError: the head, a target or an option is wrong beyond measuring.
    """
    source, base = open_source(head, config, revision), options or Options()
    turns = read_turns(prompts)
    found: list[tuple[Target, Outcome, Material]] = []
    for name in (target, *also):
        known = read_target(name)

        def given(layers: set[int], known: Target = known) -> Material:
            return (material or functools.partial(observe, turns=turns, tell=tell))(known, layers)

        search = Search(source, known, base, given, tell)
        try:
            found.append((known, search.run(), search.material))
        except HeadError:
            if not also or (name == also[-1] and not found):
                raise
    of, outcome, measured = _likeliest_target(found)
    return _conclude(str(head), target, of, outcome, measured, base)


def observe(
    target: Target, layers: set[int], turns: Sequence[str] = (), tell: Callable[[str], None] = lambda text: None
) -> Material:
    """Greedy text of a target, behind user turns or behind prompts of its own."""
    observer = Observer(target)
    tell(f"{target.name} writes")
    asked = observer.prompts(turns) if turns else observer.own_prompts(_PROMPTS)
    tell(f"{target.name} answers")
    return Material(observer, observer.answer(asked, _ANSWER), layers)


def _likeliest_target(found: list[tuple[Target, Outcome, Material]]) -> tuple[Target, Outcome, Material]:
    """The target given, unless the head agrees with another by far more than chance allows."""
    chosen = found[0]
    for other in found[1:]:
        a, b = other[1].best.measured(), chosen[1].best.measured()
        errors = [float(x.accepted.std()) / len(x.hits) ** 0.5 for x in (a, b)]
        if a.total - b.total > max(2 * SURE * sum(errors), 0.1):
            chosen = other
    return chosen


def _conclude(head: str, asked: str, target: Target, outcome: Outcome, material: Material, base: Options) -> Diagnosis:
    best, current = outcome.best, outcome.current
    findings = look(best.reading, target)
    length = expected_length(best.measured())
    more = changed_options(best.options, base)
    flags, threads = as_flags(more), "; ".join(dict.fromkeys(c.threads for c in best.changes if c.threads))
    k = min(3, best.reading.config.max_draft_tokens or 3)
    outlook = f"expect an acceptance length of {length:.2f} at k = {k}"
    per_depth = best.measured().per_depth
    fatal = next((f for f in findings if f.kind == "fatal"), None)
    suspicious = [f for f in findings if f.kind == "suspect"]
    suspects = [f.text for f in suspicious]
    # Readings of a part that was never trained differ too, for reasons that help nobody.
    hopeless = per_depth[0] < max(0.15 if suspects else 0.1, 1.5 * material.floor)
    if fatal is not None:
        kind, verdict = "beyond-repair", f"cannot be repaired by flags: {fatal.text}"
        threads = fatal.threads
    elif hopeless:
        kind, threads = "beyond-repair", "; ".join(dict.fromkeys(f.threads for f in suspicious if f.threads))
        verdict = (
            f"cannot be repaired by flags: under no reading that fits its shapes do more than {per_depth[0]:.0%} of "
            f"its first drafts agree with {target.name}; "
            + (f"suspect: {'; '.join(suspects[:3])}" if suspects else "its weights are damaged, or of another target")
        )
    elif best.reads != "last":
        kind = "beyond-repair"
        verdict = f"cannot be repaired by flags: it was trained on {best.changes[-1].says}, which vLLM hands to no head"
    elif target.name != asked:
        kind = "other-target"
        verdict = f"it is a head for {target.name}, not for {asked}; {outlook}"
    elif best is current:
        weak = length < _WEAK and k == 3
        kind, threads = ("weak" if weak else "sound"), ""
        verdict = f"the head is sound{' and simply weak' if weak else ''}: no other reading agrees better; {outlook}"
        if weak and suspects:
            verdict += f"; suspect: {'; '.join(suspects[:3])}"
    else:
        before = "its reader refuses to guess" if current is None else f"now {_share(current)}"
        kind = "repairable"
        verdict = f"read wrongly ({before}): with {best.says}, {_share(best)} of its first drafts agree; {outlook}"
        if current is None:
            verdict = f"not decided by its files: with {best.says}, {_share(best)} of its first drafts agree; {outlook}"
    served = kind != "beyond-repair"
    command = ["vllm-eagle", "convert", head, "--target", target.name, "-o", "OUT"]
    told = as_flags(best.options)
    return Diagnosis(
        head, target, outcome, findings, kind, verdict, flags if served else "",
        shlex.join(command) + (f" {told}" if told else "") if served else "",
        threads, length, material.positions, material.floor,
    )  # fmt: skip


def _share(candidate: Candidate) -> str:
    return f"{candidate.measured().per_depth[0]:.0%}"


def _rank(outcome: Outcome) -> Callable[[Candidate], tuple[bool, float, float]]:
    def rank(c: Candidate) -> tuple[bool, float, float]:
        return c is outcome.best, c.measured().total, float(c.measured().likelihood.mean())

    return rank
