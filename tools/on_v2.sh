#!/usr/bin/env bash
# on_v2.sh COMMAND...: the command, and every process it starts, with vLLM's Model Runner V2 on this CPU (tests.runner_v2).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
exec env PYTHONPATH="$here/tests/runner_v2/site${PYTHONPATH:+:$PYTHONPATH}" \
    TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 "$@"
