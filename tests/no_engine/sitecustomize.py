"""Keeps a process from building a vLLM engine. In the path of what tests start that are not marked `engine`."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

CORE = "vllm.v1.engine.core"


class NoEngine(MetaPathFinder):
    """Refuses the import that every engine begins with."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == CORE:
            raise RuntimeError("an engine starts in a test without @pytest.mark.engine")


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, NoEngine())
