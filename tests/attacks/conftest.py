"""A shell in which every command is watched for what it leaves behind."""

from __future__ import annotations

import pytest

from ..shell import Shell


@pytest.fixture
def shell(tmp_path, targets, monkeypatch, capfd) -> Shell:
    return Shell(tmp_path, targets(), monkeypatch, capfd)
