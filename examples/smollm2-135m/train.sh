#!/usr/bin/env bash
# Make the heads for SmolLM2-135M-Instruct from nothing: its own conversations, then one head after another.
# Whatever is interrupted goes on when this is run again. On a GPU, raise the numbers:
#
#   TOKENS=20000000 STEP=16384 examples/smollm2-135m/train.sh
#
# RECIPES chooses among the heads, MINUTES stops each of them after so long, WORK is where all of it goes.
set -euo pipefail
WORK=${WORK:-artifacts}
TOKENS=${TOKENS:-1000000}
STEP=${STEP:-4096}
RECIPES=${RECIPES:-eagle3 eagle1 feature surgery projection}
MINUTES=${MINUTES:-0}
run() { python -m vllm_eagle_plugin.cli "$@"; }

run demo --prepare "$WORK"
run train data --target "$WORK/target" -o "$WORK/data" --tokens "$TOKENS"
for recipe in $RECIPES; do
    run train head --recipe "$recipe" --target "$WORK/target" --data "$WORK/data" -o "$WORK/heads/$recipe" \
        --set "batch.tokens=$STEP" --minutes "$MINUTES"
done
run train plot $(for recipe in $RECIPES; do echo "$WORK/heads/$recipe"; done) -o "$WORK/heads/runs.svg"
