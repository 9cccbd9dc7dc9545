"""`vllm-eagle` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def run_cli(*arguments: Any, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [sys.executable, "-m", "vllm_eagle_plugin.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)
