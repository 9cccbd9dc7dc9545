"""Accepted and rejected tokens of one answer, in the terminal and as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

ACCEPTED, SAMPLED, REJECTED = "bold green", "bold blue", "red strike"
#: rich's SVG frame without its web font, so that the file needs no network.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


@dataclass(frozen=True)
class Step:
    """One pass of the target: drafts it accepted, the token it sampled itself, drafts it rejected."""

    accepted: list[int]
    sampled: list[int]
    rejected: list[int]


def split_steps(tokens: list[int], prompt_tokens: int, chains: dict[int, list[int]]) -> list[Step]:
    """Attribute an answer's tokens to steps.

    `chains` maps the number of tokens known before a step (the prompt, and the answer so far) to the
    drafts of that step.
    """
    steps, done = [Step([], tokens[:1], [])], 1
    while done < len(tokens):
        drafts = chains.get(prompt_tokens + done, [])
        accepted = 0
        while (
            accepted < len(drafts) and tokens[done + accepted : done + accepted + 1] == drafts[accepted : accepted + 1]
        ):
            accepted += 1
        end = done + accepted
        steps.append(Step(tokens[done:end], tokens[end : end + 1], drafts[accepted:]))
        done = end + 1
    return steps


def draw(console: Console, tokenizer_folder: Path, prompt: str, steps: list[Step], file: Path) -> None:
    """Print the answer token by token, and save it as SVG. Where nobody sees colours, rejected drafts are `[-so-]`."""
    from transformers import AutoTokenizer

    decode = AutoTokenizer.from_pretrained(tokenizer_folder).decode
    drafted = [step for step in steps if step.accepted or step.rejected]
    accepted, tokens = sum(len(s.accepted) for s in steps), sum(len(s.accepted) + len(s.sampled) for s in steps)
    length = f"{1 + accepted / len(drafted):.2f}" if drafted else "none"
    recorder = Console(record=True, width=100, file=io.StringIO(), highlight=False)
    for out in (console, recorder):
        coloured = out is recorder or (out.is_terminal and not out.no_color)
        out.print(Text(prompt, "bold"))
        out.print(_legend(coloured))
        out.print(_body(steps, decode, coloured))
        out.print(f"{tokens} tokens in {len(steps)} steps, acceptance length {length}", highlight=False)
    recorder.save_svg(str(file), title="accepted and rejected tokens", code_format=SVG)


def _legend(coloured: bool) -> Text:
    if not coloured:
        return Text("[-so-]: drafted and rejected")
    words = {"drafted and accepted": ACCEPTED, "the target's own": SAMPLED, "drafted and rejected": REJECTED}
    return Text("  ").join(Text(what, style) for what, style in words.items())


def _body(steps: list[Step], decode: Callable[[list[int]], str], coloured: bool) -> Text:
    body = Text()
    for step in steps:
        body.append("".join(_visible(decode([token])) for token in step.accepted), ACCEPTED)
        if step.rejected:
            said = "".join(_visible(decode([token])).replace("\n", "") for token in step.rejected)
            body.append(said if coloured else f"[-{said}-]", REJECTED)
        body.append("".join(_visible(decode([token])) for token in step.sampled), SAMPLED)
    return body


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n")
