"""Any one key of a head's config set to any other value that the field uses, in any served layout.

`python -m tests.key_draws COUNT SEED` draws and prints what came of it.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.verify.written import read_written

from vllm_eagle_plugin.configs import Eagle3Config, EagleConfig
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.reference import ReferenceHead, unroll

from . import in_process
from .cases import CASES, LAYOUTS
from .known_answer import Target
from .known_answer.heads import target_states
from .known_answer.target import WIDTH
from .oracle import ANYBODY, TRAINERS, CannotLoad, Oracle
from .producers import FIXTURES
from .random_models import fill

TOKENS, DRAFTS = 14, [3, 5, 7]
#: Differences of logits that are rounding, against their spread.
ROUNDING = 1e-4
_FACTORS = [1.0 + i / 8 for i in range(16)]
_ROPES: list[Any] = [
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 64, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "attention_factor": 1.7},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "mscale": 0.7},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "short_factor": _FACTORS, "long_factor": _FACTORS, "original_max_position_embeddings": 4096},
    {"rope_type": "longrope", "short_factor": _FACTORS, "long_factor": _FACTORS, "original_max_position_embeddings": 8},
    {"type": "su", "short_factor": _FACTORS, "long_factor": _FACTORS, "original_max_position_embeddings": 4096},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "mrope_section": [4, 6, 6]},
    {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    {"type": "mrope", "mrope_section": [4, 6, 6]},
    {"rope_type": "default", "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]},
    {"rope_type": "ntk", "factor": 4.0},
    {"rope_type": "default", "surprise": 3.0},
    {"full_attention": {"rope_type": "default", "rope_theta": 5e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}},
]  # fmt: skip
#: Key, or several that say one thing: values.
LAYERS: dict[str, list[Any]] = {
    "hidden_act": ["gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "relu2", "quick_gelu", "swish", "mish", "xielu", "silu"],
    "rms_norm_eps": [1e-5, 1e-2, 0.1],
    "rope_theta": [500000.0, 1e6, 150000.0],
    "rope_scaling": _ROPES,
    "rope_parameters": [r if "full_attention" in r else {"rope_theta": 10000.0, **r} for r in _ROPES],
    "partial_rotary_factor": [0.25, 0.5, 1.0],
    "layer_types,sliding_window": [(["sliding_attention"], 4), (["sliding_attention"], 4096), (["full_attention"], 4),
                                   (["sliding_attention", "full_attention"] * 4, 4), (["sliding_attention", "full_attention"], 4)],
    "sliding_window": [4, 4096, 0], "use_sliding_window": [True, False], "max_window_layers": [28],
    "attention_chunk_size": [8], "sliding_window_pattern": [6],
    "head_dim": [16, 64], "num_attention_heads": [4, 16], "num_key_value_heads": [2, 8], "hidden_size": [512],
    "attention_bias": [True], "mlp_bias": [True], "qkv_bias": [True], "bias": [True, False],
    "attn_logit_softcapping": [50.0], "final_logit_softcapping": [30.0], "logit_scale": [0.0625, 1.0],
    "logits_scaling": [8.0], "lm_head_multiplier": [0.3], "residual_multiplier": [0.22, 1.0],
    "attention_multiplier": [0.0078125], "embedding_multiplier": [12.0], "query_pre_attn_scalar": [256, 32],
    "scale_emb": [12, 1], "scale_depth": [1.4], "dim_model_base": [256], "swiglu_limit": [7.0], "clip_qkv": [8.0],
    "use_parallel_residual": [True], "alibi": [True], "use_qk_norm": [True], "norm_type": ["layernorm", "rmsnorm"],
    "layer_norm_eps": [1e-5, 1e-6], "rope_interleaved": [True, False], "no_rope_layers": [[0]], "rotary_pct": [0.25],
    "hidden_activation": ["gelu_pytorch_tanh"], "tie_word_embeddings": [True], "num_local_experts": [8],
    "num_experts_per_tok": [2], "kv_lora_rank": [512], "q_lora_rank": [1536], "n_routed_experts": [256],
    "quantization_config": [{"quant_method": "fp8"}], "pretraining_tp": [2], "num_hidden_layers": [4, 32],
    "max_position_embeddings": [64, 131072], "torch_dtype": ["float16"], "initializer_range": [0.1],
    "model_type": ["qwen3", "llama", "mistral", "gpt_oss"], "mrope_section": [[4, 6, 6]], "attn_output_gate": [True],
    "attention_dropout": [0.5], "residual_gain_scale": [0.5], "something_new": [3], "zero_centered_gamma": [True],
    "original_max_position_embeddings": [64], "attention_sink": [True], "is_causal": [False],
}  # fmt: skip
HEAD: dict[str, list[Any]] = {
    "norm_before_residual": [True, False], "norm_output": [True, False], "norm_before_fc": [True, False],
    "fc_norm": [True, False], "draft_vocab_size": [16, 24], "mask_token_id": [3], "parallel_drafting": [True],
    "target_hidden_size": [256, 512],
}  # fmt: skip


@dataclass
class Layout:
    """A fixture with random weights that matter, as its producer leaves it."""

    name: str
    head: ReferenceHead
    folder: Path
    config: Path
    target: Target
    tokens: Tensor
    hidden: Tensor
    #: Logits of the written head, by what was written.
    seen: dict[str, Tensor] = field(default_factory=dict)
    unchanged: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    layout: str
    key: str
    value: Any
    #: same, computed, refused, cannot load; or wrong.
    outcome: str
    why: str = ""


class Draws:
    """Draws keys and values, and compares what is written with what the producer's class computes."""

    def __init__(self, root: Path, target_for: Callable[..., Target], in_vllm: bool = True) -> None:
        self.root, self.target_for, self.in_vllm = root, target_for, in_vllm
        self.layouts: dict[str, Layout] = {}
        self.count = 0

    def layout(self, name: str) -> Layout:
        if name not in self.layouts:
            fixture = FIXTURES[name]
            config = {**CASES, **LAYOUTS}[fixture.case]()
            target = self.target_for(config, layers=fixture.layers)
            head = fill(config, target.embedding, target.lm_head)
            with torch.no_grad():  # streams that do not grow along a chain, and rounding with them
                for name_of, parameter in head.named_parameters():
                    if parameter.dim() == 2 and "embed" not in name_of:
                        parameter.mul_(0.5)
            if config.reduced_vocab:  # in the tokens that the target speaks, as every fixture is
                head.d2t.copy_(target.successor.unique() - torch.arange(config.draft_vocab))
            folder = self.root / f"layout{len(self.layouts)}"
            folder.mkdir()
            torch.manual_seed(0)
            fixture.write(head, folder)
            found = folder / fixture.config if fixture.config else _config_in(folder)
            tokens = torch.randint(config.vocab_size, (TOKENS,))
            hidden = target_states(config, target, tokens[None, :-1])[0]
            made = Layout(name, head, folder, found, target, tokens, hidden + torch.randn_like(hidden))
            self.layouts[name] = made
            made.unchanged = self.written(made, folder)
        return self.layouts[name]

    def draw(self, rng: random.Random) -> Drawn:
        name = rng.choice(DRAWN)
        layers = rng.random() < 0.85 or not isinstance({**CASES, **LAYOUTS}[FIXTURES[name].case](), Eagle3Config)
        pairs = [(key, value) for key, values in (LAYERS if layers else HEAD).items() for value in values]
        return self.change(name, *rng.choice(pairs))

    def change(self, name: str, key: str, value: Any) -> Drawn:
        layout = self.layout(name)
        described = json.loads(layout.config.read_text())
        place = described if key in HEAD else _layers(described)
        for part, said in zip(key.split(","), value if "," in key else [value], strict=True):
            place[part] = copy.deepcopy(said)
        folder = self.root / f"changed{self.count}"
        self.count += 1
        shutil.copytree(layout.folder, folder)
        (folder / layout.config.relative_to(layout.folder)).write_text(json.dumps(described))
        try:
            found = self.written(layout, folder)
        except HeadError as error:
            whole = error.found and error.expected and error.action and "--no-verify" not in str(error)
            return Drawn(name, key, value, "refused" if whole else "wrong", str(error))
        finally:
            shutil.rmtree(folder)
        assert layout.unchanged is not None
        same = _equal(found, layout.unchanged)
        try:
            wanted = self.producers(layout, described)
        except CannotLoad as error:
            return Drawn(name, key, value, "cannot load" if same else "wrong", str(error))
        if not _equal(found, wanted):
            worst = float((found - wanted).abs().max() / wanted.std())
            return Drawn(name, key, value, "wrong", f"logits differ by {worst:.3g} of their spread")
        return Drawn(name, key, value, "same" if same else "computed")

    def producers(self, layout: Layout, described: dict[str, Any]) -> Tensor:
        """What the producer's class computes with this config."""
        name = "torchspec" if described.get("_torchspec_version") else FIXTURES[layout.name].reader
        if name == "baldeagle-eagle3" and {"norm_output", "fc_norm", "target_hidden_size"} & set(described):
            name = "specforge"  # whose keys these are: the two share a layout
        oracle = Oracle(layout.head, _layers(described), TRAINERS.get(name, ANYBODY), described)
        return oracle.chain(layout.tokens, layout.hidden, DRAFTS)

    def written(self, layout: Layout, folder: Path) -> Tensor:
        """Logits of what conversion writes, which the reference and vLLM's class agree on."""
        fixture = FIXTURES[layout.name]
        named = folder / fixture.config if fixture.config else None
        out = self.root / "out"
        shutil.rmtree(out, ignore_errors=True)
        done = convert(folder, str(layout.target.folder), out, Options(**fixture.options), config=named)
        config = {k: v for k, v in done.layout.config.items() if k != "eagle_provenance"}
        key = json.dumps([config, sorted(done.layout.tensors)], sort_keys=True)
        if key not in layout.seen:
            head = read_written(out, layout.target.embedding, layout.target.lm_head)
            layout.seen[key] = _chain(head, layout)
            own = head.config
            if self.in_vllm and not (isinstance(own, Eagle3Config) and own.parallel_drafting):
                speculative = {"method": own.method, **done.layout.speculative}
                model = in_process.draft_model(layout.target.folder, out, speculative, head)
                served = in_process.chain(model, head, layout.tokens, layout.hidden, DRAFTS)
                assert _equal(served, layout.seen[key]), f"vLLM and the reference differ: {layout.name}, {config}"
        return layout.seen[key]


def _chain(head: ReferenceHead, layout: Layout) -> Tensor:
    fed = torch.zeros(1, TOKENS - 1, len(DRAFTS) + 1, dtype=torch.long)
    fed[0, :, : len(DRAFTS)] = torch.tensor(DRAFTS)
    with torch.no_grad():
        steps = unroll(head, layout.tokens[None], layout.hidden[None], len(DRAFTS) + 1, fed=fed)
        logits = torch.stack([step.logits[0, -1] for step in steps])
    return in_process.by_target_id(head, logits)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) < ROUNDING * float(other.std())


def _config_in(folder: Path) -> Path:
    return next(f for f in sorted(folder.rglob("config.json"), key=lambda f: len(f.parts)))


def _layers(described: dict[str, Any]) -> dict[str, Any]:
    """Where a config describes the head's layers."""
    inner = described.get("transformer_layer_config") or described.get("model")
    return inner if isinstance(inner, dict) else described


def _described(name: str) -> bool:
    config = {**CASES, **LAYOUTS}[FIXTURES[name].case]()
    layers = isinstance(config, EagleConfig | Eagle3Config) and config.hidden_size == WIDTH
    return layers and FIXTURES[name].reader != "converted"  # whose keys are our own flags


#: Layouts of heads with layers that a config describes whole (the narrow one's leaves out head_dim).
DRAWN = sorted(name for name in FIXTURES if _described(name))


def main(count: int, seed: int) -> None:
    from tempfile import TemporaryDirectory

    from .cases import SUBSET
    from .known_answer import build_target

    rng, outcomes = random.Random(seed), Counter()
    with TemporaryDirectory() as temporary, in_process.one_rank():
        root, targets = Path(temporary), {}

        def target_for(config: Any, layers: int) -> Target:
            key = (SUBSET if config.reduced_vocab else None, layers)
            if key not in targets:
                targets[key] = build_target(root / f"target{len(targets)}", subset=key[0], layers=layers)
            return targets[key]

        draws = Draws(root, target_for)
        for number in range(count):
            drawn = draws.draw(rng)
            outcomes[drawn.outcome] += 1
            if drawn.outcome == "wrong":
                print(number, drawn, flush=True)
    print(json.dumps({"draws": count, "seed": seed, **outcomes}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
