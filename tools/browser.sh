#!/usr/bin/env bash
# A Chromium for the tests of report pages: the machine's own, or Debian's where we may install it.
set -euo pipefail
for name in chromium chromium-browser google-chrome chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
        >/dev/null 2>&1 && exit 0
fi
echo "note: no Chromium here, so the tests of report pages cannot run; install the package chromium" >&2
