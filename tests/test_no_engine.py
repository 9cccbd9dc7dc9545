"""A test that starts an engine and is not marked so fails: here, and in a process that it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUILD = "from vllm.v1.engine.core import EngineCore; EngineCore(None, None, False)"


def test_not_in_this_process() -> None:
    with pytest.raises(RuntimeError, match=r"without @pytest\.mark\.engine"):
        exec(BUILD)


def test_not_in_another() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True)
    assert done.returncode == 1
    assert "without @pytest.mark.engine" in done.stderr


@pytest.mark.engine
def test_where_it_is_marked() -> None:
    with pytest.raises(AttributeError):  # of the configuration that is none
        exec(BUILD)
