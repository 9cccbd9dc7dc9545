"""The producers' own forward passes, where their packages are installed: an opinion that owes nothing to our readers.

Each loads a head's tensors and config into its producer's class and drafts chains as that package does. `tools/fixtures`
makes heads and outputs with the same functions, in an environment of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import HeadError
from ...targets.observer import Observer, read_turns
from ...targets.target import Target
from ..doctor.agreement import handed_over
from ..source import Source
from .compare import TOLERANCE, Drafted, Figures, compare, layers_of
from .job import prompts_for
from .written import read_written

Outputs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Theirs:
    """A producer's class: how a head becomes one, and what it drafts from every position."""

    package: str
    distribution: str
    #: Source and target to their module, with the target's embedding where the head has none.
    load: Callable[[Source, Target], nn.Module]
    #: Module, tokens [1, T + 1], hidden [1, T, *], steps, lm_head [V, D] to logits [steps, T, Vd], drafts [steps, T].
    forward: Callable[[Any, Tensor, Tensor, int, Tensor], Outputs]
    #: Later steps are fed the tokens that stand there, not the drafts.
    fed_text: bool = False


@torch.no_grad()
def specforge(model: Any, tokens: Tensor, hidden: Tensor, steps: int, lm_head: Tensor) -> Outputs:
    """Its training-time-test steps, fed their own drafts."""
    length = hidden.shape[1]
    cache: list[list[Tensor]] = [[], []]
    state = model.project_hidden_states(hidden)
    mask = model.prepare_decoder_attention_mask(torch.ones(1, length, dtype=torch.bool), state, 1, length, 0)
    current, logits, drafts = tokens[:, 1:], [], []
    for _ in range(steps):
        state = model.backbone(
            model.embed_input_ids(current), state, cache, mask, torch.arange(length)[None], use_cache=True
        )
        logits.append(model.compute_logits(state)[0])
        best = logits[-1].argmax(-1)
        drafts.append(best + model.d2t[best])
        current = drafts[-1][None]
    return torch.stack(logits), torch.stack(drafts)


@torch.no_grad()
def speculators(model: Any, tokens: Tensor, hidden: Tensor, steps: int, lm_head: Tensor) -> Outputs:
    """Its training forward, fed the text."""
    logits: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: logits.append(out[0]))
    found = model(hidden, tokens[:, 1:], torch.zeros(1, hidden.shape[1], dtype=torch.long), ttt_steps=steps)
    hook.remove()
    best = torch.cat(found)
    return torch.stack(logits), best if model.d2t is None else best + model.d2t[best]


@torch.no_grad()
def eagle_llm(model: Any, tokens: Tensor, hidden: Tensor, steps: int, lm_head: Tensor) -> Outputs:
    """Its `generate`, behind every position."""
    head = nn.Linear(lm_head.shape[1], lm_head.shape[0], bias=False)
    head.weight = nn.Parameter(lm_head)
    seen: list[Tensor] = []
    head.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    length = hidden.shape[1]
    logits, drafts = torch.zeros(steps, length, len(lm_head)), torch.zeros(steps, length, dtype=torch.long)
    model.reset()
    for position in range(length):
        seen.clear()
        found = model.generate(hidden[:, : position + 1], tokens[:, : position + 2], head, steps, use_cache=True)
        made = len(found) - position - 2  # it stops at token 2
        drafts[:made, position] = torch.tensor(found[len(found) - made :])
        logits[:, position] = torch.stack([s.reshape(-1, len(lm_head))[-1] for s in seen[:steps]])
    return logits, drafts


def _load_specforge(source: Source, target: Target) -> nn.Module:
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # it compiles its norms
    from transformers import LlamaConfig

    module = importlib.import_module("specforge.modeling.draft.llama3_eagle")
    config = LlamaConfig(**{k: v for k, v in source.config.values.items() if k != "model_type"})
    return _filled(module.LlamaForCausalLMEagle3(config, attention_backend="sdpa"), source, target)


def _load_speculators(source: Source, target: Target) -> nn.Module:
    models = importlib.import_module("speculators.models.eagle3")
    config = models.Eagle3SpeculatorConfig.from_dict(dict(source.config.values))
    config.transformer_layer_config._attn_implementation = "sdpa"  # its default needs a compiled kernel
    return _filled(models.Eagle3DraftModel(config), source, target)


def _load_eagle_llm(source: Source, target: Target) -> nn.Module:
    described = {"rope_scaling": None, "pretraining_tp": 1, "pad_token_id": 0, **source.config.values}
    model = importlib.import_module("eagle.model.cnets").Model
    return _filled(model(SimpleNamespace(**described), bias=source.has("fc.bias")), source, target)


def _filled(model: nn.Module, source: Source, target: Target) -> nn.Module:
    state = {name: tensor.load() for name, tensor in source.tensors.items()}
    if "embed_tokens.weight" not in state:
        state["embed_tokens.weight"] = target.embedding.load()
    missing, odd = model.load_state_dict(state, strict=False)
    if missing or odd:
        raise HeadError(
            f"{type(model).__name__} of the producer's package {'misses' if missing else 'does not know'} {(missing or odd)[0]}",
            "The tensors that its own save writes were expected",
            "Compare with the version of the package that trained the head",
        )
    return model.float().eval()


THEIRS = {
    "speculators-eagle3": Theirs("speculators", "speculators==0.9.0", _load_speculators, speculators, fed_text=True),
    "specforge": Theirs("specforge", "specforge==0.2.0", _load_specforge, specforge),
    "safeailab-eagle": Theirs("eagle", "eagle_llm==1.2.1", _load_eagle_llm, eagle_llm),
}


def against_producer(
    producer: str, source: Source, target: Target, converted: Path, prompts: Path | None, steps: int
) -> tuple[Figures, str]:
    """The written head beside its producer's own class, over texts of the target; the figures, and whose they are.

    Raises:
        HeadError: no package of this producer is known or installed, or its class cannot hold the head.
    """
    theirs = THEIRS.get(producer)
    if theirs is None or importlib.util.find_spec(theirs.package) is None:
        known = ", ".join(f"{name} ({found.distribution})" for name, found in THEIRS.items())
        raise HeadError(
            f"the head is of {producer}, whose "
            + ("package is not installed" if theirs else "own forward pass is not known here"),
            f"Known are {known}",
            f"pip install {theirs.distribution}" if theirs else "Verify it without --against",
        )
    model = theirs.load(source, target)
    embedding, lm_head = target.embedding.load().float(), target.lm_head.load().float()
    head = read_written(converted, embedding, lm_head)
    observer = Observer(target)
    drafted = []
    for text in observer.answer(prompts_for(observer, read_turns(prompts)), 32):
        ids = torch.tensor([text.tokens])
        states = observer.states(ids[:, :-1], layers_of(head))
        hidden = handed_over(head.config, states, "last", target.num_layers).float().cpu()
        logits, drafts = theirs.forward(model, ids, hidden, steps, lm_head)
        end = hidden.shape[1] - (steps if theirs.fed_text else 0)
        fed = ids[0, 2:].unfold(0, steps, 1) if theirs.fed_text else None
        at = {p: (drafts[:, p].tolist(), logits[:, p]) for p in range(max(end, 0))}
        drafted.append(Drafted(text.tokens, at, fed))
    return compare(head, observer, drafted, steps, TOLERANCE[torch.float32]), theirs.distribution.split("==")[0]
