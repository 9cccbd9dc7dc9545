"""Model Runner V2 on a CPU: Triton's interpreter stands in for the Triton backend that no registry has.

`tools/on_v2.sh COMMAND` puts a command, and every process that it starts, on V2: through `site/sitecustomize.py`, so
that the environment is set and Triton prepared before anything imports vLLM. A pytest session is on one runner as a
whole (`ON_V2`), since vLLM chooses when it is imported:

    .venv/bin/python -m pytest -n 0 tests/test_known_answer.py -k feature                  # V1
    tools/on_v2.sh .venv/bin/python -m pytest -n 0 tests/test_known_answer.py -k feature   # V2; -m '' for all of it

On V2 only tests marked `v2` are run: the quick ones, `v2(quick=True)`, by `make test`, the others count as extended.
A test of V2 alone is marked `v2_only`, quick or not by the same `quick`. `tests.engine.engine` works as on V1; an
engine takes 10 to 60 seconds. `site/triton_on_cpu.py` is the stand-in itself.
"""

import os

#: Whether the engines of this process are on Model Runner V2.
ON_V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
