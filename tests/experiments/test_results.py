"""Every figure of README and docs is that of its result; and what the comparison must notice."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from experiments import results
from experiments.results import BLOCK, QUOTE, ROOT, Result, documents, misquoted, read, renewed, text, write
from vllm_eagle_plugin.errors import HeadError

NAMES = sorted(file.stem for file in results.FOLDER.glob("*.json"))
#: What only a measurement says: an interval, a ratio to something, a time, a rate, a size in memory.
MEASURED = re.compile(
    r"\d\.\d+ \(\d[\d.]+ to|±|\d\.\d\d+ times|\d (?:ms|µs|milliseconds)\b|\d tokens/s|\d (?:MiB|MB)\b(?! pieces)", re.I
)
#: Settings, not measurements.
SETTINGS = ("pieces of 32 MB", "1 MiB a minute")


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", documents(), ids=named)
def test_tables_are_the_results(file: Path) -> None:
    assert renewed(file.read_text()) == file.read_text(), "python -m experiments.results writes the tables anew"


@pytest.mark.parametrize("file", documents(), ids=named)
def test_quoted_figures_are_the_results(file: Path) -> None:
    assert list(misquoted(file.read_text())) == []


@pytest.mark.parametrize("file", [f for f in documents() if "examples" not in f.parts], ids=named)
def test_no_figure_stands_alone(file: Path) -> None:
    """Outside tables of results, quotes and code nothing looks measured."""
    left = re.sub(r"(?ms)^```.*?^```$|^ {4}.*?$|`[^`]*`", "", QUOTE.sub("", BLOCK.sub("", file.read_text())))
    for setting in SETTINGS:
        left = left.replace(setting, "")
    assert [left[max(0, m.start() - 40) : m.end() + 20] for m in MEASURED.finditer(left)] == []


@pytest.mark.parametrize("name", NAMES)
def test_results_say_where_they_are_from(name: str) -> None:
    result = read(name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result.date)
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?", result.commit)
    assert result.what
    assert result.machine
    assert result.command
    assert all(len(cells) == len(result.columns) for cells in result.rows.values())
    quoted = [named(file) for file in documents() if f"<!-- result: {name} -->" in file.read_text()]
    assert quoted == ["docs/measurements.md"], "a result is kept because a document shows it"


@pytest.mark.extended
def test_small() -> None:
    """What is tracked, trained weights left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    if not files:
        pytest.skip("not a clone")
    weights = {".safetensors", ".bin", ".pt", ".npz"}
    kept = [file for file in files if file.suffix not in weights or "examples" not in file.parts]
    assert sum(file.stat().st_size for file in kept) < 3_000_000


def test_results_are_small() -> None:
    assert sum(file.stat().st_size for file in results.FOLDER.iterdir()) < 100_000


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    rows = {"one": [(1.234, 1.1, 1.3), 587.0, "3 of 3"], "other": [None, 1234.5, ""]}
    result = Result(
        what="w", date="2026-01-02", commit="abcdef0", machine="m", command="c", first="what",
        columns={"speed": 2, "size": 0, "same": 0}, rows=rows,
    )  # fmt: skip
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    write("some", result, tmp_path)
    return result


def test_what_is_written_is_read(made: Result) -> None:
    assert read("some") == made
    assert dict(made.figures())["speed, one"].high == 1.3
    with pytest.raises(HeadError, match="no figure two; speed"):
        made.cell("two", "speed")


def test_a_table_is_kept_up_to_date(made: Result) -> None:
    document = "a\n\n<!-- result: some -->\n| old | 1 |\n\n2020-01-01, commit `1`, x: `y`.\n\n## After\n"
    new = renewed(document)
    assert "| one | 1.23 (1.10 to 1.30) | 587 | 3 of 3 |" in new
    assert "old" not in new
    assert new.endswith("2026-01-02, commit `abcdef0`, m: `c`.\n\n## After\n")
    assert renewed(new) == new
    assert renewed(new.replace("1.23", "1.24")) != new.replace("1.23", "1.24")


@pytest.mark.parametrize(
    ("quote", "right"),
    [
        ('[1.23](m.md "some; one; speed")', True),
        ('[1.2](m.md#x "some; one; speed")', True),
        ('[1.23 (1.10 to 1.30)](m.md "some; one; speed")', True),
        ('[3 of 3](m.md "some; one; same")', True),
        ('[587 MB](m.md "some; one; size")', True),
        ('[1,234](m.md "some; other; size")', True),
        ('[1.24](m.md "some; one; speed")', False),
        ('[1.23 (1.10 to 1.40)](m.md "some; one; speed")', False),
        ('[2 of 3](m.md "some; one; same")', False),
        ('[fast](m.md "some; one; speed")', False),
        ('[1.23](m.md "some; other; speed")', False),
    ],
)
def test_misquotes_are_noticed(made: Result, quote: str, right: bool) -> None:
    assert (list(misquoted(f"It is {quote}.")) == []) is right


def test_digits() -> None:
    assert text((1.0, 0.5, 2.0), 1) == "1.0 (0.5 to 2.0)"
    assert text(None, 2) == ""
