"""One engine, one question: `python -m tests.gpu.case FOLDER CASE.json RESULT.json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

#: What a case may hold of the card for its keys and values.
CACHE = 3 << 30


def main() -> None:
    folder, case, result = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(case["runner"] == "v2"))
    if case["runner"] == "v2" and case["kind"] != "speed":
        os.environ.setdefault("VLLM_GPU_SYNC_CHECK", "error")
    try:
        found: dict[str, Any] = {"ok": True, **(convert if case["kind"] == "convert" else run)(folder, case)}
    except BaseException as error:
        found = {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:1500],
            "trace": traceback.format_exc()[-4000:],
        }
    result.write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # an engine that failed may wait for its threads for ever


def run(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What the engine said, and its counters."""
    from vllm import LLM, SamplingParams, TokensPrompt

    started = time.monotonic()
    llm = LLM(**arguments(folder, case))
    found: dict[str, Any] = {"start_seconds": time.monotonic() - started}
    config = llm.llm_engine.vllm_config
    found["v2"] = bool(getattr(config, "use_v2_model_runner", False))
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in questions(folder, case)]
    params = SamplingParams(
        temperature=case["temperature"], max_tokens=case["tokens"], ignore_eos=case["kind"] != "tokens" or "known" in case["target"],
        detokenize=False,
    )  # fmt: skip
    size = case["batch"] or len(prompts)
    groups = [prompts[at : at + size] for at in range(0, len(prompts), size)]
    if case["kind"] == "speed":  # warms up
        llm.generate(groups[0], params, use_tqdm=False)
    seconds = []
    for _ in range(3 if case["kind"] == "speed" else 1):
        before, started = counters(llm), time.monotonic()
        outputs = [o for group in groups for o in llm.generate(group, params, use_tqdm=False)]
        seconds.append(time.monotonic() - started)
    tokens = [list(o.outputs[0].token_ids) for o in outputs]
    after = counters(llm)
    drafts = after["num_drafts"] - before["num_drafts"]
    accepted = after["num_accepted_tokens"] - before["num_accepted_tokens"]
    found |= {"seconds": seconds, "tokens": tokens, "tokens_per_second": sum(map(len, tokens)) / min(seconds)}
    if drafts:
        found |= {"acceptance_length": 1 + accepted / drafts, "drafts": drafts}
    if case["kind"] == "draws":
        found["starts"] = [p["prompt_token_ids"][-1] for p in prompts]
    return found


def convert(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What `vllm-eagle convert` proves of a trained head."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "vllm_eagle_plugin.cli", "convert", str(folder / "trained" / case["head"])]
        command += ["--target", str(folder / case["target"]), "-o", f"{work}/out", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return {"v2": True, "verification": json.loads(done.stdout)["verification"]}


def arguments(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Of `vllm.LLM`."""
    given: dict[str, Any] = {
        "model": str(folder / case["target"]),
        "dtype": case["dtype"],
        "max_model_len": 1024 if case["target"] in ("demo", "large") else 256,
        "max_num_seqs": max(32, case["batch"]),
        "enforce_eager": not case["graphs"],
        "disable_log_stats": False,
        "seed": 0,
        "kv_cache_memory_bytes": CACHE,
        **case["engine"],
    }
    if case["head"]:
        given["speculative_config"] = {
            "model": str(folder / "heads" / case["head"]), "num_speculative_tokens": case["k"], **case["speculative"],
        }  # fmt: skip
    if case["tree"]:
        given["additional_config"] = {"eagle": {"tree": case["tree"]}}
    return given


def questions(folder: Path, case: dict[str, Any]) -> list[list[int]]:
    """Prompts of the target, over and over until there are enough."""
    known = json.loads((folder / case["target"] / "prompts.json").read_text())
    return [known[i % len(known)] for i in range(case["requests"])]


def counters(llm: Any) -> dict[str, float]:
    """vLLM's speculative counters; zeros without any."""
    found = {m.name.removeprefix("vllm:spec_decode_"): m.value for m in llm.get_metrics() if hasattr(m, "value")}
    return {name: found.get(name, 0) for name in ("num_drafts", "num_accepted_tokens")}


if __name__ == "__main__":
    main()
