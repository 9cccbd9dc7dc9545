#!/usr/bin/env bash
# The heads that train.sh made, side by side in vLLM: acceptance length at k = 1 to 6, greedy and sampled,
# milliseconds of drafting, speed against plain decoding. What was measured before is kept.
#
#   PROMPTS=mt_bench.jsonl examples/smollm2-135m/compare.sh
#
# HEADS chooses among them, WORK is where they are, LIMIT asks only so many questions, PYTHON says which
# environment runs it.
set -euo pipefail
WORK=${WORK:-artifacts}
HEADS=${HEADS:-eagle3 eagle1 feature surgery projection medusa}
PROMPTS=${PROMPTS:-builtin}
LIMIT=${LIMIT:-}
TOKENS=${TOKENS:-256} # most of an answer
AT_ONCE=${AT_ONCE:-80} # requests; acceptance does not depend on it
# Prompts are not read in chunks: vLLM on CPU loses seeded requests then.
ENGINE=${ENGINE:-{\"max_model_len\": 2048, \"enforce_eager\": true, \"max_num_batched_tokens\": 16384\}}
python=${PYTHON:-python3}

served=()
for head in $HEADS; do
    folder=$WORK/heads/$head
    if [ "$head" != medusa ]; then # vLLM serves that one as it is
        [ "$WORK/served/$head/config.json" -nt "$folder/config.json" ] ||
            "$python" -m vllm_eagle_plugin.cli convert "$folder" --target "$WORK/target" -o "$WORK/served/$head" --force
        folder=$WORK/served/$head
    fi
    served+=("$folder")
done
"$python" -m experiments.heads "${served[@]}" --target "$WORK/target" -o "$WORK/comparison" \
    --prompts "$PROMPTS" --max-tokens "$TOKENS" --concurrency "$AT_ONCE" ${LIMIT:+--limit "$LIMIT"} --engine-args "$ENGINE"
"$python" -m vllm_eagle_plugin.cli train plot "${served[@]/#$WORK\/served/$WORK/heads}" -o "$WORK/comparison/curve.svg"
