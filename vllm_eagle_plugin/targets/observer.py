"""What a target says and computes: greedy text with the hidden states a head could have been trained on.

Plain torch and transformers, so that heads can be measured where vLLM is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from ..errors import HeadError, UsageError
from .prompts import ChatFrame, encode_turn, file_turns
from .running import decoder_of, load_model
from .target import Target

#: Temperature at which the target writes prompts for itself.
_ASKING = 0.9
#: Tokens that go through the target at once.
_AT_ONCE = 2048


@dataclass(frozen=True)
class Text:
    """A prompt and what the target greedily writes behind it."""

    prompt: list[int]
    answer: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer


@dataclass(frozen=True)
class States:
    """Of tokens [B, T]: streams between layers by vLLM's number, and the last state behind the final norm."""

    streams: dict[int, Tensor]
    last: Tensor


class Observer:
    """A target in the precision it is stored in."""

    def __init__(self, target: Target, dtype: torch.dtype | None = None) -> None:
        self.target, self._dtype = target, dtype
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = _tokenizer(target)

    @cached_property
    def model(self) -> Any:
        """The target itself, loaded when it is first asked; raises `TargetNotRun`."""
        return load_model(self.target, self._dtype).to(self.device)

    @property
    def context(self) -> int:
        """Longest text that the target reads."""
        return self.target.config.max_position_embeddings or 2048

    def prompts(self, turns: Sequence[str], longest: int = 256) -> list[list[int]]:
        """User turns as the target's chat template presents them; as they are where it has none."""
        if self.tokenizer is None:
            raise UsageError(
                f"the target {self.target.name} has no tokenizer, and prompts were given",
                "Text needs one",
                "Put tokenizer.json beside its weights, or leave --prompts out",
            )
        if getattr(self.tokenizer, "chat_template", None):
            frame = ChatFrame.of(self.tokenizer)
            encoded = [encode_turn(self.tokenizer, frame, turn) for turn in turns]
        else:
            encoded = [self.tokenizer(turn)["input_ids"] for turn in turns]
        return [prompt for prompt in encoded if 0 < len(prompt) <= longest]

    def own_prompts(self, count: int, seed: int = 0, length: int = 40) -> list[list[int]]:
        """Prompts that the target writes itself, as far as it can write any: user turns, text, random tokens."""
        torch.manual_seed(seed)
        if self.tokenizer is None:
            return torch.randint(self.target.vocab_size, (count, 4)).tolist()
        if getattr(self.tokenizer, "chat_template", None):
            frame = ChatFrame.of(self.tokenizer)
            written = self._write([frame.before] * count, length, frame.stops, _ASKING)
            ended = [[t for t in turn if t not in frame.stops] for turn in written]
            return [frame.before + turn + frame.after for turn in ended if len(turn) > 3]
        start = self.tokenizer.bos_token_id
        first = [[start]] * count if start is not None else torch.randint(self.target.vocab_size, (count, 1)).tolist()
        return [p + w for p, w in zip(first, self._write(first, length, [], _ASKING), strict=True)]

    def answer(self, prompts: Sequence[list[int]], tokens: int) -> list[Text]:
        """Greedy text behind each prompt, `tokens` long or up to where the target stops."""
        written: list[Text] = []
        for at in range(0, len(prompts), 32):
            group = [p for p in prompts[at : at + 32] if len(p) + tokens < self.context]
            if group:
                answers = self._write(group, tokens, self._stops(), 0.0)
                written += [Text(p, a) for p, a in zip(group, answers, strict=True)]
        return written

    @torch.inference_mode()
    def states(self, ids: Tensor, layers: Iterable[int]) -> States:
        """States at ids [B, T], padded on the right; the stream behind the last layer is taken before the norm."""
        wanted, count = set(layers), self.target.num_layers
        kept: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
        last: list[Tensor] = []
        before_norm: list[Tensor] = []
        hook = self._last_layer().register_forward_hook(
            lambda _, args, out: before_norm.append(out[0] if isinstance(out, tuple) else out)
        )
        try:
            for rows in ids.split(max(1, _AT_ONCE // ids.shape[1])):
                out = decoder_of(self.model)(rows.to(self.device), output_hidden_states=True, use_cache=False)
                for layer in wanted - {count}:
                    kept[layer].append(out.hidden_states[layer])
                last.append(out.last_hidden_state)
        finally:
            hook.remove()
        if count in wanted:
            kept[count] = before_norm
        return States({layer: torch.cat(parts) for layer, parts in kept.items()}, torch.cat(last))

    def _last_layer(self) -> nn.Module:
        """The last decoder layer: the end of the list that is as long as the target is deep."""
        for module in decoder_of(self.model).modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.target.num_layers:
                return module[-1]
        raise HeadError(
            f"the layers of {type(self.model).__name__} were not found",
            "A list of decoder layers was expected",
            "This target cannot be measured",
        )

    def _stops(self) -> list[int]:
        found = self.model.generation_config.eos_token_id
        stops = {found} if isinstance(found, int) else set(found or ())
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            stops.add(self.tokenizer.eos_token_id)
        return sorted(stops)

    @torch.inference_mode()
    def _write(self, prompts: list[list[int]], tokens: int, stops: list[int], temperature: float) -> list[list[int]]:
        width, filler = max(map(len, prompts)), stops[0] if stops else 0
        ids = torch.tensor([[filler] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        # The target's own distribution: none of the cuts that generation configs make.
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        written = self.model.generate(
            ids, attention_mask=mask, do_sample=bool(temperature), max_new_tokens=tokens, repetition_penalty=1.0,
            eos_token_id=stops or None, pad_token_id=filler, **sampling,
        )[:, width:].tolist()  # fmt: skip
        return [_up_to_stop(row, stops) for row in written]


def read_turns(file: Path | None) -> list[str]:
    """User turns of a file of prompts: JSON lines with prompt, messages or turns, or plain text."""
    if file is None:
        return []
    turns = list(file_turns(file))
    if not turns:
        raise UsageError(f"{file} holds no prompts", "One a line was expected", "See `vllm-eagle doctor --help`")
    return turns


def _tokenizer(target: Target) -> Any:
    """The target's tokenizer; None where it has none, as models for tests do."""
    if not any((target.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(target.folder)
    except (OSError, ValueError, KeyError) as error:
        raise HeadError(
            f"the tokenizer of {target.name} cannot be read: {' '.join(str(error).split())[:200]}",
            "A Hugging Face tokenizer was expected beside the weights",
            "Copy or download it again",
        ) from None


def _up_to_stop(tokens: list[int], stops: list[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]
