#!/usr/bin/env bash
# Heads and outputs of the producers' own classes, kept in tests/fixtures.tar.xz: made anew with their packages in an
# environment of their own (artifacts/producers), which sees what is installed in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=artifacts/producers
packages=(eagle_llm==1.2.1 specforge==0.2.0 speculators==0.9.0 hs-connectors==0.9.0 loguru datasets pyarrow multiprocess xxhash pytz)
if [ ! -e "$folder/.ready" ]; then
    .venv/bin/python -m venv "$folder"
    site=$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    base=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
    echo "import site; site.addsitedir('$base')" > "$site/base.pth"
    "$folder/bin/python" -m pip --disable-pip-version-check -q install --no-deps "${packages[@]}"
    touch "$folder/.ready"
fi
for script in tools/fixtures/make_*.py; do
    "$folder/bin/python" "$script"
done
cd artifacts/fixtures
rm -f eagle_llm/state_0/random_states_0.pkl  # made of the clock; everything else is the same each time
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -c -- * | xz -9e > ../../tests/fixtures.tar.xz
ls -l ../../tests/fixtures.tar.xz
