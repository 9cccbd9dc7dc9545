"""What a draft step costs, and that the plugin costs nothing where it is not used.

**Draft step.** Milliseconds of drafting in full decode steps, by drafted token: a random-weight Llama target (4 layers,
32,000 tokens, bf16), greedy, k = 4. Attention-free heads of its width against the EAGLE-1 Llama head of stock vLLM.
All but the projection head end in the target's lm_head, here most of the arithmetic. Random heads are hardly ever
right; wrong drafts cost what right ones do.

**Plugin unused.** Whole engine steps of plain decoding and of the stock head, with the plugin loaded and without
(`VLLM_PLUGINS=`). A ratio of 1 within its interval is what to expect.

The engines that are compared take turns on the same blocks; a figure is the mean of the blocks' medians, its interval
over blocks. What differs from process to process is not in that interval: run it again, on an idle machine.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from vllm_eagle_plugin.benchmarks.environment import load
from vllm_eagle_plugin.benchmarks.interleave import interleaved
from vllm_eagle_plugin.benchmarks.methods import Method
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.session import Sampling
from vllm_eagle_plugin.benchmarks.statistics import ratio_interval
from vllm_eagle_plugin.benchmarks.worker import open_workers

from vllm_eagle_plugin.command import run_function

from . import options

VOCAB, LAYERS = 32_000, 4
K, BATCHES, PROMPT, TOKENS = 4, (1, 8, 32), 32, 14
OURS, STOCK, PLAIN, OFF = ("feature", "surgery", "projection"), "stock", "plain", " without plugin"
GROUPS = ((PLAIN, PLAIN + OFF), (STOCK, STOCK + OFF, *OURS))
#: Medians of the blocks by (case, batch, part).
Blocks = dict[tuple[str, int, str], list[float]]


def main(
    width: Annotated[int, typer.Option(help="Hidden size of target and heads; a multiple of 64.", min=64)] = 1024,
    rounds: Annotated[int, typer.Option(help="Blocks of every case.", min=1)] = 4,
    output: options.Output = None,
) -> None:
    """Time draft steps of our heads against stock EAGLE-1, and stock vLLM with and without the plugin."""
    os.environ["OMP_NUM_THREADS"] = "1"
    before, blocks = load(), Blocks()
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), width)
        for group in GROUPS:
            blocks |= measure(group, rounds, Path(folder))
    figures = tables(blocks)
    for title, rows in figures.items():
        table = Table("", *(f"batch {b}" for b in BATCHES), title=title, title_justify="left")
        for name, row in rows.items():
            table.add_row(name, *(f"{c['value']:.2f} ({c['low']:.2f} to {c['high']:.2f})" for c in row.values()))
        Console(highlight=False).print(table)
    settings = {"width": width, "layers": LAYERS, "vocab": VOCAB, "k": K, "dtype": "bfloat16", "rounds": rounds}
    options.write(output, "draft_step", before, settings=settings, figures=figures)


def measure(cases: tuple[str, ...], rounds: int, models: Path) -> Blocks:
    """The blocks of engines that are up together."""
    methods = []
    for case in cases:
        model = str(models / case.removesuffix(OFF))
        config = {"model": model, "method": "eagle", "num_speculative_tokens": K}
        methods.append(Method(case, None if case.startswith(PLAIN) else config))
    settings = {case: {"VLLM_PLUGINS": "" if case.endswith(OFF) else "eagle"} for case in cases}
    engine: dict[str, Any] = {"max_num_seqs": max(BATCHES), "max_num_batched_tokens": PROMPT * max(BATCHES)}
    engine |= {"dtype": "bfloat16", "enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 128}
    sampling, blocks = Sampling(max_tokens=TOKENS, ignore_eos=True), Blocks()
    with open_workers(str(models / "target"), {m.name: m.speculative for m in methods}, engine, settings) as workers:
        for batch in BATCHES:
            prompts = [tuple((37 * n + 101 * i) % VOCAB for i in range(PROMPT)) for n in range(batch * (1 + rounds))]
            questions = [Question(n, str(n), token_ids=prompt) for n, prompt in enumerate(prompts)]
            seen = dict.fromkeys(cases, 0)
            for number, trials in enumerate(interleaved(workers, methods, questions, sampling, batch)):
                for method in methods:
                    steps = trials[method.name].steps
                    full = [s for s in steps[seen[method.name] :] if s.rows == batch * (1 + method.k)]
                    seen[method.name] = len(steps)
                    if number:  # the first block warms up
                        for part in ("total", "draft"):
                            times = median(getattr(s, part) for s in full)
                            blocks.setdefault((method.name, batch, part), []).append(times)
    return blocks


def tables(blocks: Blocks) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The figures: title -> case -> batch size -> value and interval."""

    def times(part: str, case: str, by: float) -> dict[str, dict[str, float]]:
        return {str(b): spread([t / by for t in blocks[case, b, part]]) for b in BATCHES}

    def ratio(part: str, case: str, to: str) -> dict[str, dict[str, float]]:
        return {str(b): spread(blocks[case, b, part], blocks[to, b, part]) for b in BATCHES}

    return {
        "draft, ms per drafted token": {n: times("draft", n, K) for n in (STOCK, *OURS)},
        "draft, ratio to stock EAGLE-1": {n: ratio("draft", n, STOCK) for n in OURS},
        "engine step, ms": {n: times("total", n, 1) for group in GROUPS for n in group},
        "engine step, plugin unused / no plugin": {n: ratio("total", n, n + OFF) for n in (PLAIN, STOCK)},
    }


def spread(values: list[float], others: list[float] | None = None) -> dict[str, float]:
    """The mean, divided by `others`' if given, and its interval over blocks."""
    others = others or [1.0] * len(values)
    value = fmean(values) / fmean(others)
    low, high = ratio_interval(values, others) or (value, value)
    return {"value": value, "low": low, "high": high}


def write_models(folder: Path, width: int) -> None:
    """The target and one head of each kind, with random weights, in bf16."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from vllm_eagle_plugin.configs import AttentionFreeConfig
    from vllm_eagle_plugin.reference import build_reference

    torch.manual_seed(0)
    base: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": width}
    decoder: dict[str, Any] = {"intermediate_size": 11 * width // 4, "num_attention_heads": width // 64}
    llama = LlamaConfig(**base, **decoder, num_hidden_layers=LAYERS, bos_token_id=None, eos_token_id=None)
    LlamaForCausalLM(llama).to(torch.bfloat16).save_pretrained(folder / "target")
    ours: dict[str, dict[str, Any]] = {
        "feature": {"input_projection": width, "num_blocks": 2, "block_residual": True, "output_projection": True},
        "surgery": {"use_hidden": False, "num_blocks": 2, "block_activation": "relu"},
        "projection": {"input_projection": width, "input_activation": "silu", "use_embedding": False, "own_lm_head": True},
    }  # fmt: skip
    for name, flags in ours.items():
        head = build_reference(AttentionFreeConfig(**base, **flags)).to(torch.bfloat16)
        head.config.save_pretrained(folder / name)
        save_file({k: v.contiguous() for k, v in head.state_dict().items()}, folder / name / "model.safetensors")
    # SafeAILab's layout, which stock vLLM reads: one Llama layer without its input norm, and fc.
    llama.num_hidden_layers, llama.architectures = 1, ["LlamaForCausalLM"]
    llama.save_pretrained(folder / STOCK)
    layer = LlamaForCausalLM(llama).to(torch.bfloat16).model.layers.state_dict()
    tensors = {f"layers.{name}": tensor for name, tensor in layer.items() if "input_layernorm" not in name}
    tensors["fc.weight"] = torch.randn(width, 2 * width, dtype=torch.bfloat16) * (2 * width) ** -0.5
    save_file(tensors, folder / STOCK / "model.safetensors")


if __name__ == "__main__":
    run_function(main)
