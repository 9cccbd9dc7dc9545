"""Stock vLLM beside the plugin: a stock-layout EAGLE head, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from vllm_eagle_plugin.reference import ReferenceHead


def save_stock_eagle(head: ReferenceHead, folder: Path) -> Path:
    """Write a plain EAGLE-1 head as SafeAILab publishes it, which stock vLLM serves."""
    folder.mkdir(parents=True, exist_ok=True)
    c = head.config
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim, "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(head.state_dict(), folder / "model.safetensors")
    return folder


def run_apart(plugin: bool, **job: Any) -> dict[str, Any]:
    """Run `job` (see `main`) in a new process, with our plugin loaded or kept out."""
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    if not plugin:
        environment["VLLM_PLUGINS"] = ""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stock", json.dumps(job, default=str)],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Serve `target` with `head` and print greedy tokens, counters, and sampled continuations as JSON."""
    job = json.loads(sys.argv[1])
    from .engine import engine

    with engine(job["target"], job.get("head"), job.get("k", 3), max_num_seqs=64, **job.get("options", {})) as running:
        calls = []
        sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_filename) if event == "call" else None)
        greedy = running.generate(job.get("prompts", []), max_tokens=30) if job.get("prompts") else []
        sys.setprofile(None)
        counters = running.counters()
        sampled = []
        if job.get("samples"):
            torch.manual_seed(0)
            asked = [job["sampled_prompt"]] * job["samples"]
            sampled = running.generate(asked, max_tokens=job["sampled_tokens"], temperature=1.0)
    ours = sorted(name for name in sys.modules if name.startswith("vllm_eagle_plugin."))
    package = str(Path(find_spec("vllm_eagle_plugin").origin).parent)
    ours_called = sum(name.startswith(package) for name in calls)
    print(
        json.dumps(
            {
                "calls": len(calls),
                "plugin_calls": ours_called,
                "greedy": greedy,
                "counters": vars(counters),
                "sampled": sampled,
                "modules": ours,
            }
        )
    )


if __name__ == "__main__":
    main()
