"""Letting a target write: through vLLM where it is installed, else through transformers alone."""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

import torch

from ..errors import UsageError
from ..targets.running import load_model
from ..targets.target import read_target

BACKENDS = ("auto", "vllm", "plain")


class Generator(Protocol):
    """Continues prompts (token ids), each at its temperature (0: greedy), up to and with a stop token."""

    name: str

    def __call__(
        self, prompts: list[list[int]], temperatures: list[float], max_tokens: int, stops: list[int], seed: int
    ) -> list[list[int]]: ...


def open_generator(
    backend: str, target: str, batch: int, length: int, precision: str, eager: bool = False
) -> Generator:
    """A generator for `target`: `batch` sequences at once (0: as suits it) of at most `length` tokens.

    `eager`: so little is to be written that compiling first (vLLM) would take longer.

    Raises:
        UsageError: an unknown backend, or vLLM asked for and not there.
    """
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend} is not known", f"One of {', '.join(BACKENDS)} was expected")
    has_vllm = importlib.util.find_spec("vllm") is not None
    if backend == "vllm" and not has_vllm:
        raise UsageError("vLLM is not installed", "--backend vllm needs it", "Pass --backend plain")
    if backend == "vllm" or (backend == "auto" and has_vllm):
        return VllmGenerator(target, batch or 256, length, precision, eager)
    return PlainGenerator(target, batch or (1024 if torch.cuda.is_available() else 32), precision)


class VllmGenerator:
    """Generation by a vLLM engine, plain (nothing drafts)."""

    name = "vllm"

    def __init__(self, target: str, batch: int, length: int, precision: str, eager: bool) -> None:
        from vllm import LLM

        self._llm = LLM(
            target,
            dtype="bfloat16" if precision == "bf16" else "float32",
            max_model_len=length,
            max_num_seqs=batch,
            skip_tokenizer_init=True,
            disable_log_stats=True,
            enforce_eager=eager,
        )

    def __call__(
        self, prompts: list[list[int]], temperatures: list[float], max_tokens: int, stops: list[int], seed: int
    ) -> list[list[int]]:
        from vllm import SamplingParams, TokensPrompt

        torch.manual_seed(seed)  # seeds of single requests would slow each step down
        params = [
            SamplingParams(temperature=t, max_tokens=max_tokens, stop_token_ids=stops, detokenize=False)
            for t in temperatures
        ]
        inputs = [TokensPrompt(prompt_token_ids=p) for p in prompts]
        return [list(o.outputs[0].token_ids) for o in self._llm.generate(inputs, params, use_tqdm=False)]


class PlainGenerator:
    """Batched `generate` of transformers on one device, prompts of alike length and temperature together."""

    name = "plain"

    def __init__(self, target: str, batch: int, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = load_model(read_target(target), dtype).to(device)
        self._batch = batch

    def __call__(
        self, prompts: list[list[int]], temperatures: list[float], max_tokens: int, stops: list[int], seed: int
    ) -> list[list[int]]:
        torch.manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: (temperatures[i], len(prompts[i])))
        answers: list[list[int]] = [[] for _ in prompts]
        while order:
            temperature = temperatures[order[0]]
            group = [i for i in order[: self._batch] if temperatures[i] == temperature]
            order = order[len(group) :]
            for i, answer in zip(
                group, self._continue([prompts[i] for i in group], temperature, max_tokens, stops), strict=True
            ):
                answers[i] = answer
        return answers

    @torch.inference_mode()
    def _continue(
        self, prompts: list[list[int]], temperature: float, max_tokens: int, stops: list[int]
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[stops[0]] * (width - len(p)) + p for p in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        # The target's own distribution: none of the cuts that generation configs and defaults make.
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        written = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=bool(temperature),
            max_new_tokens=max_tokens,
            eos_token_id=stops,
            pad_token_id=stops[0],
            repetition_penalty=1.0,
            **sampling,
        )[:, width:].tolist()
        return [_up_to_stop(row, stops) for row in written]


def _up_to_stop(tokens: list[int], stops: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]
