#!/usr/bin/env bash
# Make the heads for SmolLM2-135M-Instruct from nothing: its own conversations, then one head after another.
# Whatever is interrupted goes on when this is run again. On a large GPU, without vLLM:
#
#   TOKENS=12000000 SHARD=8192 BATCH=4096 STEP=16384 examples/smollm2-135m/train.sh
#
# RECIPES chooses among the heads, EPOCHS how often each sees the data, MINUTES stops each after so long,
# WORK is where all of it goes, PYTHON which environment runs it.
set -euo pipefail
WORK=${WORK:-artifacts}
TOKENS=${TOKENS:-1000000} # answer tokens to write
SHARD=${SHARD:-256}       # conversations written together
BATCH=${BATCH:-0}         # of these, in one batch (0: as suits the machine)
STEP=${STEP:-1024}        # tokens of a training step
EPOCHS=${EPOCHS:-1}
RECIPES=${RECIPES:-eagle3 eagle1 feature surgery projection medusa}
MINUTES=${MINUTES:-0}
run() { "${PYTHON:-python3}" -m vllm_eagle_plugin.cli "$@"; }

[ -e "$WORK/target/config.json" ] || run demo --prepare "$WORK"
run train data --target "$WORK/target" -o "$WORK/data" --tokens "$TOKENS" --per-shard "$SHARD" --batch "$BATCH"
heads=()
for recipe in $RECIPES; do
    run train head --recipe "$recipe" --target "$WORK/target" --data "$WORK/data" -o "$WORK/heads/$recipe" \
        --set "batch.tokens=$STEP" --set "epochs=$EPOCHS" --minutes "$MINUTES"
    heads+=("$WORK/heads/$recipe")
done
run train plot "${heads[@]}" -o "$WORK/heads/runs.svg"
