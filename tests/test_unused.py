"""With the plugin installed and no head of ours in use, vLLM behaves exactly as without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .cases import CASES
from .known_answer import known_answer_head
from .stock import run_apart, save_stock_eagle

#: All that registration may load of us; neither the proposers nor the models nor the references.
LIGHT = {"compat", "configs", "errors", "preflight"}


def test_registering_imports_nothing_heavy():
    code = (
        "import sys, vllm_eagle_plugin as p; p.register(); p.register();"
        "print(*sorted(m for m in sys.modules if m.startswith('vllm_eagle_plugin')));"
        "print('vllm.v1.spec_decode.eagle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, eagle = done.stdout.splitlines()[-2:]
    assert {name.split(".")[1] for name in ours.split() if "." in name} <= LIGHT
    assert eagle == "False"


def test_importing_the_package_imports_neither_torch_nor_vllm():
    code = "import sys, vllm_eagle_plugin; print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.engine
@pytest.mark.parametrize("speculative", ["none", "stock eagle"])
def test_same_tokens_and_counters(speculative, targets, tmp_path):
    target = targets()
    job = {"target": target.folder, "prompts": [target.walk(int(target.successor[i]), 3 + i) for i in range(10)]}
    if speculative == "stock eagle":
        job["head"] = save_stock_eagle(known_answer_head(CASES["eagle"](), target), tmp_path / "head")
        job["options"] = {"speculative": {"method": "eagle"}}
    without, with_plugin = (run_apart(plugin=plugin, **job) for plugin in (False, True))
    assert not without["modules"]
    assert "vllm_eagle_plugin.compat" in with_plugin["modules"]
    assert not any("models" in name for name in with_plugin["modules"])
    assert with_plugin["calls"] > 1000
    assert with_plugin["plugin_calls"] == 0, "a step without our heads must not pass through our code"
    assert with_plugin["greedy"] == without["greedy"]
    assert with_plugin["counters"] == without["counters"]
    if speculative == "stock eagle":
        assert with_plugin["counters"]["accepted"] == with_plugin["counters"]["draft_tokens"] > 0
