#!/usr/bin/env bash
# One archive for a machine with a GPU and vLLM but no clone: artifacts/gpu-kit.tar.gz. There:
#   tar xzf gpu-kit.tar.gz && cd gpu-kit && pip install --no-deps *.whl && python -m tests.gpu.drive data -o out
set -euo pipefail
cd "$(dirname "$0")/.."
kit=artifacts/gpu-kit
mkdir -p "$kit/tests"
.venv/bin/python -m tests.gpu.prepare "$kit/data"
rm -f "$kit"/*.whl
.venv/bin/python -m pip --disable-pip-version-check -q wheel --no-deps --no-build-isolation . -w "$kit"
cp tests/__init__.py "$kit/tests/"
rm -rf "$kit/tests/gpu"
cp -r tests/gpu "$kit/tests/"
tar -C artifacts -czf artifacts/gpu-kit.tar.gz gpu-kit
echo "artifacts/gpu-kit.tar.gz"
