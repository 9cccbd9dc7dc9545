"""Data files are cut at "\\n" alone, whatever else Unicode calls the end of a line."""

from __future__ import annotations

import json

import pytest

from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.lines import numbered_lines
from vllm_eagle_plugin.record import Proposal, read_record
from vllm_eagle_plugin.targets.prompts import file_turns

ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"


def test_prompts_keep_their_separators(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"{ENDS} {i}"}, ensure_ascii=False) for i in range(3)) + "\r\n\n")
    assert list(file_turns(file)) == [f"{ENDS} {i}" for i in range(3)]
    text = tmp_path / "prompts.txt"
    text.write_text(f"{ENDS}\nsecond\n")
    assert list(file_turns(text)) == [ENDS, "second"]


def test_the_number_of_a_broken_line_is_right(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": ENDS}, ensure_ascii=False) + "\n\n{no\n")
    with pytest.raises(HeadError, match="line 3 of"):
        list(file_turns(file))


def test_records_keep_their_separators(tmp_path):
    file = tmp_path / "record.jsonl"
    proposal = {"request": ENDS, "position": 3, "sampled": 1, "drafts": [5, 6]}
    file.write_text(json.dumps(proposal, ensure_ascii=False) + "\n")
    assert read_record(file) == [{Proposal(**proposal).known_tokens: [5, 6]}]


def test_lines_are_numbered_with_blank_ones(tmp_path):
    (tmp_path / "f").write_text("a\n\n  \nb", encoding="utf-8")
    assert list(numbered_lines(tmp_path / "f")) == [(1, "a"), (4, "b")]
