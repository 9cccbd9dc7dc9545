#!/usr/bin/env bash
# The newest vLLM that we compared has no build for CPUs: what we need of it is looked for in its published sources.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
folder=artifacts/versions/sources
newest=$("$PYTHON" -c 'from vllm_eagle_plugin.compat.versions import SUPPORTED, dotted; print(dotted(SUPPORTED[1]))')
[ -x "$folder/pip/bin/python" ] || "$PYTHON" -m venv "$folder/pip"
"$folder/pip/bin/python" -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: \
    --platform manylinux_2_28_x86_64 --implementation cp --python-version 3.11 --abi abi3 -d "$folder" "vllm==$newest.*"
for wheel in "$folder/vllm-$newest".*.whl; do
    "$PYTHON" tools/check_symbols.py "$wheel"
done
