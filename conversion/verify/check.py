"""Verifying a written head: inside vLLM where it is installed, in plain torch otherwise."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ...errors import HeadError, UsageError
from ...targets.observer import Observer, read_turns
from ...targets.running import TargetNotRun, why_not
from ...targets.stand_in import StandIn
from ...targets.target import Target, read_target
from ..options import Options
from ..route import Layout, choose_layout
from ..source import Source
from ..understand import open_source, understand
from ..write import write_tensors
from .compare import TOLERANCE, Drafted, Figures, compare, layers_of
from .job import Job, prompts_for
from .written import read_written


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it came out."""

    #: `vllm` (its version) or `torch`.
    engine: str
    precision: str
    figures: dict[str, Any]
    passed: bool
    #: What failed; empty if nothing did.
    why: str = ""
    #: What could not be tried here, and so was not proven; empty if all was.
    not_proven: str = ""

    def as_json(self) -> dict[str, Any]:
        shown = {"engine": self.engine, "precision": self.precision, **self.figures, "passed": self.passed}
        return shown | {k: v for k, v in (("why", self.why), ("not_proven", self.not_proven)) if v}


def sentence(figures: dict[str, Any]) -> str:
    """The figures of a verification in one line."""
    drafts = f"{figures['drafts_equal']} of {figures['positions']} chains equal to the token"
    ties = f" ({figures['drafts_tied']} at ties)" if figures["drafts_tied"] else ""
    worst = max((row["max_difference"] for row in figures["logits"]), default=0.0)
    shown = f"{drafts}{ties}, logits within {worst:g} of a spread of {figures['logits_spread']:g} ({figures['engine']})"
    return f"{shown}; not proven: {figures['not_proven']}" if figures.get("not_proven") else shown


def verify(
    head: str | Path, target: str, converted: Path, options: Options | None = None, prompts: Path | None = None,
    config: Path | None = None, revision: str | None = None, plain: bool = False, against: str | None = None,
) -> Verification:  # fmt: skip
    """Compare the head that `convert` wrote to `converted` with the trained one at `head`.

    `plain`: in torch alone, also where vLLM is installed. `against`: `producer` compares with the forward pass of the
    producer's own package instead.

    Raises:
        HeadError: a head, the target or an option is wrong, or the comparison could not be made.
    """
    if not (converted / "config.json").is_file() or not (converted / "model.safetensors").is_file():
        raise UsageError(
            f"{converted} holds no converted head", "The folder that `vllm-eagle convert` wrote was expected", "Convert the head first"
        )  # fmt: skip
    source = open_source(head, config, revision)
    if against is not None:
        return _against(against, source, read_target(target), converted, options or Options(), prompts)
    return verify_source(source, read_target(target), converted, options or Options(), prompts, config, plain)


def verify_source(
    source: Source, target: Target, converted: Path, options: Options, prompts: Path | None = None,
    config: Path | None = None, plain: bool = False,
) -> Verification:  # fmt: skip
    """`verify` for a source that has been opened."""
    _, reading = understand(source, target, options)
    layout = choose_layout(reading, target)
    changed = _changed(layout, converted)
    if changed:
        nothing = Figures(0).as_json()
        return Verification("files", "", nothing, False, f"{changed} is not what was converted")
    if layout.quantised:
        return _dequantised(source, target, options, prompts, config, plain)
    if plain or not has_vllm() or why_not(target):
        return _in_torch(source, target, converted, options, prompts)
    job = Job(
        str(source.path), str(target.folder), str(converted), _told(options), None if config is None else str(config),
        None if prompts is None else str(prompts), reading.config.method, layout.speculative, layout.needs_plugin,
    )  # fmt: skip
    try:
        found = Verification(**_answer(job))
    except TargetNotRun:  # vLLM runs it, torch does not: there is no telling what the head should read
        return _in_torch(source, target, converted, options, prompts)
    except BrokenOff:
        alone = _answer(replace(job, alone=True))["alone"]
        if not alone:
            raise  # the target runs: it is the head
        found = _in_torch(source, target, converted, options, prompts)
        unproven = f"that vLLM serves it, which cannot run the target here ({alone})"
        return replace(found, not_proven="; ".join(filter(None, (unproven, found.not_proven))))
    return found if found.passed else _explained(found, _in_torch(source, target, converted, options, prompts))


def _explained(found: Verification, plainly: Verification) -> Verification:
    """A failure in vLLM with its cause, which the same comparison in PyTorch tells."""
    whose = (
        "in PyTorch the two are equal, so that this version of vLLM computes something else than its layers say"
        if plainly.passed else f"in PyTorch too {plainly.why}, so that the conversion is at fault"
    )  # fmt: skip
    return replace(found, why=f"{found.why}; {whose}")


def _dequantised(
    source: Source, target: Target, options: Options, prompts: Path | None, config: Path | None, plain: bool
) -> Verification:
    """A quantised head, whose tensors have been found to be the source's bit by bit: its reading is proven with dense
    weights. What a server's quantised kernels make of the bits is not."""
    told = replace(options, dtype=options.dtype or "float32")
    with tempfile.TemporaryDirectory(prefix="vllm-eagle-verify.") as folder:
        dense = choose_layout(understand(source, target, told)[1], target)
        write_tensors(Path(folder) / "model.safetensors", dense.tensors)
        (Path(folder) / "config.json").write_text(json.dumps(dense.config), encoding="utf-8")
        found = verify_source(source, target, Path(folder), told, prompts, config, plain)
    bits = "every tensor is the source's bit by bit, drafts compared with dense weights, quantised kernels not run"
    return replace(found, engine=f"{found.engine}; {bits}")


def _against(
    whom: str, source: Source, target: Target, converted: Path, options: Options, prompts: Path | None
) -> Verification:
    if whom != "producer":
        raise UsageError(f"--against {whom} is not known", "producer was expected", "Correct the option")
    from .theirs import against_producer

    detection, reading = understand(source, target, options)
    steps = min(4, reading.config.max_draft_tokens or 4)
    figures, package = against_producer(detection.reader.name, source, target, converted, prompts, steps)
    return judged(figures, f"{package}'s own forward pass", torch.float32)


def judged(figures: Figures, engine: str, precision: torch.dtype) -> Verification:
    """Whether differences are rounding."""
    tolerance, why = TOLERANCE[precision], ""
    mean = max(figures.mean, default=0.0)
    differing = figures.positions - figures.equal - figures.ties
    if not figures.positions:
        why = "nothing was drafted"
    elif not mean <= tolerance * figures.spread:
        why = f"logits differ by {mean:.3g} in the mean, of a spread of {figures.spread:.3g}"
    elif differing:
        why = f"{differing} of {figures.positions} chains draft other tokens"
    return Verification(engine, str(precision).removeprefix("torch."), figures.as_json(), not why, why)


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _changed(layout: Layout, converted: Path) -> str:
    """The first tensor that differs from what the reader made of the source; empty if none does."""
    with safe_open(converted / "model.safetensors", framework="pt") as opened:
        names = set(opened.keys())
        odd = sorted(names ^ set(layout.tensors))
        if odd:
            return f"tensor {odd[0]}"
        for name, tensor in layout.tensors.items():
            if not _same(opened.get_tensor(name), tensor.load()):
                return f"tensor {name}"
    return ""


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit: FP8 knows no comparison."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))
    )


def _in_torch(source: Source, target: Target, converted: Path, options: Options, prompts: Path | None) -> Verification:
    """With the target's own states, or with random ones where it cannot be run."""
    _, reading = understand(source, target, options)
    head = reading.reference(target)
    observer: Observer | StandIn
    unproven = ""
    try:
        observer = Observer(target)
        texts = observer.answer(prompts_for(observer, read_turns(prompts)), 32)
    except TargetNotRun as error:
        observer = StandIn(target)
        texts = observer.texts()
        unproven = f"how it drafts for the target (random states stood in: {error.found})"
    embedding, lm_head = target.embedding.load().float(), target.lm_head.load().float()
    steps = min(4, reading.config.max_draft_tokens or 4)
    written = read_written(converted, embedding, lm_head)
    drafted = [Drafted(tokens, at) for tokens, at in _drafts(written, observer, [t.tokens for t in texts], steps)]
    found = judged(compare(head, observer, drafted, steps, TOLERANCE[torch.float32]), "torch", torch.float32)
    return replace(found, not_proven=unproven)


@torch.inference_mode()
def _drafts(head: Any, observer: Observer | StandIn, texts: list[list[int]], steps: int) -> Any:
    """What a reference head drafts from every position of some texts, with its logits."""
    from ...reference import unroll
    from ..doctor.agreement import handed_over

    for tokens in texts:
        ids = torch.tensor([tokens])
        states = observer.states(ids[:, :-1], layers_of(head))
        hidden = handed_over(head.config, states, "last", observer.target.num_layers).float().cpu()
        made = list(unroll(head, ids, hidden, steps))
        drafts = torch.stack([s.drafts[0] for s in made], 1).tolist()
        logits = torch.stack([s.logits[0] for s in made], 1)
        yield tokens, {p: (drafts[p], logits[p]) for p in range(len(drafts))}


class BrokenOff(HeadError):
    """The process with vLLM gave no answer."""


def _answer(job: Job) -> dict[str, Any]:
    """Of a process of its own: vLLM's memory and talk go with it."""
    environment = dict(os.environ)
    if not job.needs_plugin:
        environment["VLLM_PLUGINS"] = ""  # stock vLLM by itself must serve it
    with tempfile.TemporaryDirectory(prefix="vllm-eagle-verify.") as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(asdict(job)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "vllm_eagle_plugin.conversion.verify.worker", str(asked), str(answered)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        if not answered.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            said = lines[-1][:300] if lines else f"exit code {done.returncode}"
            if job.alone:
                return {"alone": said}
            raise BrokenOff(
                f"vLLM runs the target and breaks off with the written head: {said}",
                "The converted head was to draft there",
                "Nothing was written: it would not serve. Report it with this message and the head's config.json",
            )
        result = json.loads(answered.read_text(encoding="utf-8"))
    if "error" in result:
        raise (TargetNotRun if result["not_run"] else HeadError)(*result["error"])
    return result


def _told(options: Options) -> dict[str, Any]:
    """Options as JSON holds them."""
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in asdict(replace(options, flags=dict(options.flags))).items()
    }
