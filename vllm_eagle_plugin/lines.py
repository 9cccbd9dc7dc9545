r"""Lines of data files. They end at "\n" alone: `str.splitlines` also cuts at U+2028, U+0085 and others, which JSON
strings and prompts may hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            yield number, line
