#!/usr/bin/env bash
# Make the environment in .venv: vLLM on CPU, this package (editable), and what its tests need.
# Reproducible from requirements.lock; a second run with nothing changed does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH="torch==2.13.0+cpu"
PYTHON=${PYTHON:-python3}
stamp=$(cat requirements.lock tools/setup.sh pyproject.toml | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/.ready 2>/dev/null)" = "$stamp" ] && exit 0

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$PYTHON" --version) was found. Python 3.11 or newer is needed. Set PYTHON=/path/to/python3.11." >&2
    exit 1
}
echo "setting up .venv (a few minutes, once)"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }

# The CPU build of torch is on some indexes by itself; elsewhere PyTorch's own index has it.
pip install --no-deps "$TORCH" 2>/dev/null || pip install --no-deps "$TORCH" --index-url https://download.pytorch.org/whl/cpu
pip install --no-deps -r requirements.lock
pip uninstall -y torchvision torchaudio torchcodec 2>/dev/null || true
pip install --no-deps --no-build-isolation -e .
.venv/bin/python -m vllm_eagle_plugin.cpu
echo "$stamp" > .venv/.ready
