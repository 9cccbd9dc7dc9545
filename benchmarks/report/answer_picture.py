"""Accepted and rejected tokens of one answer, in the terminal and as a picture."""

from __future__ import annotations

import io
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
    """Print the answer token by token, and save it as SVG."""
    from transformers import AutoTokenizer

    decode = AutoTokenizer.from_pretrained(tokenizer_folder).decode
    legend = Text.assemble(
        ("drafted and accepted", ACCEPTED),
        "  ",
        ("the target's own", SAMPLED),
        "  ",
        ("drafted and rejected", REJECTED),
    )
    body = Text()
    for step in steps:
        for ids, style in ((step.accepted, ACCEPTED), (step.rejected, REJECTED), (step.sampled, SAMPLED)):
            for token in ids:
                body.append(decode([token]).replace("\n", "⏎\n" if style != REJECTED else "⏎"), style)
    recorder = Console(record=True, width=100, file=io.StringIO(), highlight=False)
    for out in (console, recorder):
        out.print(Text(prompt, "bold"))
        out.print(legend)
        out.print(body)
    recorder.save_svg(str(file), title="accepted and rejected tokens", code_format=SVG)
