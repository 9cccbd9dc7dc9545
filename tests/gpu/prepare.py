"""`python -m tests.gpu.prepare FOLDER`: the targets and heads that the cases ask for. Needs no GPU and no vLLM."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig
from vllm_eagle_plugin.conversion import convert

from vllm_eagle_plugin.demo.run import shipped_head
from vllm_eagle_plugin.demo.target import build_target as build_demo

from ..cases import CASES, SUBSET
from ..known_answer import build_target, known_answer_head, save_head
from ..known_answer.target import VOCAB, cycle
from .plan import KNOWN, SHIPPED

QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "What is the difference between a list and a tuple in Python?",
    "Give me a recipe for pancakes.",
    "Solve 3x + 5 = 20 and show each step.",
    "Write a polite email that asks for a day off.",
    "Name five animals that live in the desert and say how they keep cool.",
    "Translate 'good morning, how are you?' into French and Spanish.",
)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    known_answers(folder)
    demo(folder)
    large(folder)
    print(folder)


def known_answers(folder: Path) -> None:
    """Targets with a known language, a head of each family for them, and one whose distribution is known."""
    targets = {
        "known": build_target(folder / "known"),
        "known-subset": build_target(folder / "known-subset", subset=SUBSET),
    }
    for name, target in targets.items():
        members = [int(t) for t in target.successor.unique()]
        _prompts(folder / name, [target.walk(start, 5 + start % 7) for start in members])
    for head, name in KNOWN.items():
        save_head(known_answer_head(CASES[head](), targets[name]), folder / "heads" / f"known-{head}")
    logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
    logits[torch.arange(VOCAB), cycle(VOCAB)] = 4.0
    markov = build_target(folder / "markov", logits=logits)
    states = markov.hidden(torch.arange(VOCAB)[:, None])[:, 0]
    torch.save((states @ markov.lm_head.T).double(), folder / "markov" / "logits.pt")
    _prompts(folder / "markov", [[start] for start in range(VOCAB)])
    save_head(known_answer_head(CASES["eagle"](), markov), folder / "heads" / "markov-eagle")


def demo(folder: Path) -> None:
    """The demo's chat model and the shipped heads."""
    target = build_demo(folder / "demo")
    tokenizer = AutoTokenizer.from_pretrained(target)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    _prompts(target, [tokenizer.apply_chat_template(a, add_generation_prompt=True)["input_ids"] for a in asked])
    for head in SHIPPED:
        trained = shipped_head().parent / head
        convert(trained, str(target), folder / "heads" / head, force=True)
    shutil.copytree(shipped_head(), folder / "trained" / "eagle3", dirs_exist_ok=True)


def large(folder: Path) -> None:
    """The shape of an 8B target and of an EAGLE-3 head for it, without weights: vLLM makes them up."""
    shape = {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    LlamaConfig(**shape, num_hidden_layers=32, architectures=["LlamaForCausalLM"]).save_pretrained(folder / "large")
    _prompts(folder / "large", [list(range(100 + i, 164 + i)) for i in range(8)])
    head = LlamaConfig(**shape, num_hidden_layers=1, architectures=["LlamaForCausalLM"]).to_dict()
    head |= {"draft_vocab_size": 32000, "eagle_aux_hidden_state_layer_ids": [2, 16, 29], "num_aux_hidden_states": 3}
    (folder / "heads" / "large-eagle3").mkdir(parents=True, exist_ok=True)
    (folder / "heads" / "large-eagle3" / "config.json").write_text(json.dumps(head))


def _prompts(folder: Path, prompts: list[list[int]]) -> None:
    (folder / "prompts.json").write_text(json.dumps(prompts))


if __name__ == "__main__":
    main()
