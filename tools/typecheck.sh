#!/usr/bin/env bash
# mypy over the whole distribution. Its four folders become one package only when installed, which mypy
# cannot see in an editable install, so it is shown a folder of links laid out as the package is.
set -euo pipefail
cd "$(dirname "$0")/.."
layout=build/types/vllm_eagle_plugin
rm -rf build/types
mkdir -p "$layout"
for entry in vllm_eagle_plugin/* conversion training benchmarks; do
    ln -s "$PWD/$entry" "$layout/$(basename "$entry")"
done
ln -s "$PWD/experiments" build/types/experiments
cd build/types
exec ../../.venv/bin/mypy --config-file ../../pyproject.toml -p vllm_eagle_plugin -p experiments
