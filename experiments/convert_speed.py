"""Memory and speed of converting a large sharded head, beside copying its files.

`python -m experiments.convert_speed --json FILE`
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from vllm_eagle_plugin.benchmarks.environment import load

from vllm_eagle_plugin.command import run_function

from . import options

#: Converts in a process of its own, whose memory is then only the conversion's.
_CONVERT = """
import json, sys, time
from pathlib import Path
from vllm_eagle_plugin.conversion import convert
started = time.perf_counter()
convert(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
seconds = time.perf_counter() - started
# Not ru_maxrss: a new process inherits that of the one it was forked from.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_bytes": int(peak.split()[1]) * 1024}))
"""


def build(folder: Path, width: int, inner: int, vocab: int) -> tuple[Path, Path]:
    """A target of embeddings only, and an EAGLE-1 head with an own embedding in four shards; random bf16."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "vocab_size": vocab,
        "intermediate_size": inner, "num_attention_heads": width // 128, "num_key_value_heads": width // 1024,
        "num_hidden_layers": 1, "rope_theta": 500000.0, "max_position_embeddings": 4096,
    }  # fmt: skip
    target, head = folder / "target", folder / "head"
    for path in (target, head):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
    table = torch.empty(vocab, width, dtype=torch.bfloat16).normal_()
    save_file({"model.embed_tokens.weight": table}, target / "model.safetensors")
    table[::2] *= 0.9
    kv = width // 8
    shards = [
        {"embed_tokens.weight": table},
        {"fc.weight": (width, 2 * width), "layers.0.self_attn.q_proj.weight": (width, width)},
        {"layers.0.self_attn.k_proj.weight": (kv, width), "layers.0.self_attn.v_proj.weight": (kv, width),
         "layers.0.self_attn.o_proj.weight": (width, width), "layers.0.mlp.gate_proj.weight": (inner, width)},
        {"layers.0.mlp.up_proj.weight": (inner, width), "layers.0.mlp.down_proj.weight": (width, inner),
         "layers.0.post_attention_layernorm.weight": (width,)},
    ]  # fmt: skip
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        index.update(dict.fromkeys(shard, name))
        made = {
            n: t if isinstance(t, torch.Tensor) else torch.empty(t, dtype=torch.bfloat16).normal_(1.0, 0.02)
            for n, t in shard.items()
        }
        save_file(made, head / name)
    (head / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return target, head


def measure(folder: Path, target: Path, head: Path, rounds: int) -> dict[str, Any]:
    """Copying and converting in turn, in this order, `rounds` times."""
    copies, conversions, peak = [], [], 0
    for _ in range(rounds):
        started = time.perf_counter()
        shutil.copytree(head, folder / "copy")
        subprocess.run(["sync", "-f", str(folder / "copy")], check=True)
        copies.append(time.perf_counter() - started)
        shutil.rmtree(folder / "copy")
        done = subprocess.run(
            [sys.executable, "-c", _CONVERT, str(head), str(target), str(folder / "out")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        conversions.append(found["seconds"])
        peak = max(peak, found["peak_bytes"])
        shutil.rmtree(folder / "out")
    return {"copy_seconds": copies, "convert_seconds": conversions, "peak_bytes": peak}


def main(
    width: Annotated[int, typer.Option(min=1024, help="Hidden size.")] = 8192,
    inner: Annotated[int, typer.Option(min=1024, help="MLP width.")] = 28672,
    vocab: Annotated[int, typer.Option(min=1024)] = 128256,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    output: options.Output = None,
) -> None:
    """Convert a synthetic head (by default of 4 GB) and copy it, in turn."""
    before = load()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as room:
        folder = Path(room)
        target, head = build(folder, width, inner, vocab)
        size = sum(f.stat().st_size for f in head.glob("*.safetensors"))
        figures = measure(folder, target, head, rounds)
    largest = vocab * width * 2
    speed = min(figures["copy_seconds"]) / min(figures["convert_seconds"])
    copied, converted = min(figures["copy_seconds"]), min(figures["convert_seconds"])
    print(
        f"head {size / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB, peak memory {figures['peak_bytes'] / 1e6:.0f} MB"
    )
    print(f"copied in {copied:.1f} s, converted in {converted:.1f} s (best of {rounds}): {speed:.2f} times the speed")
    sizes = {"head_bytes": size, "largest_tensor_bytes": largest}
    options.write(output, "convert_speed", before, **sizes, **figures, speed_against_copying=speed)


if __name__ == "__main__":
    run_function(main)
