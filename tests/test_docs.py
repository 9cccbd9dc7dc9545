"""Links of README and docs lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?(?: \"[^\"]*\")?\)")


def anchors(file: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", file.read_text())
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", h) for h in re.findall(r"(?m)^#+ (.+)$", text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`(?!\])", "", file.read_text())
    for path, anchor in LINK.findall(text):
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{path} is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path} has no heading #{anchor}"
