#!/usr/bin/env bash
# Compare how states enter a world (docs/states.md): every way, number of episodes and seed is trained for as long, and
# judged on the same clips; then one table with paired intervals.
#
#   scripts/state_ways.sh [TRAIN [VAL [WORK]]]   data of the twin, and where the runs go; if not given, the data of
#                                                scripts/builtins.sh, and cache/state_ways
#
# What is there already is kept, so that it can be interrupted and asked for more. By environment variable:
#   FAMILY    compression (or sampling)
#   WAYS      none add adaln cross_attention map adaln+map (also add+map, cross_attention+map)
#   EPISODES  400 (8 32 128 400)
#   SEEDS     0 (0 1 2)
#   STEPS     700, of adaln; the others get as many as take the same CPU time, or with EQUAL=steps just as many
#   CLIPS     60 (24), that are judged; OPTIONS: more of `worldline train`, for all ways
#   RECIPE    compression_tiny (sampling_tiny); for another robot one without the twin's skeleton: compression_any
#   JUDGED    --data twin-mini-val --inverse-dynamics inverse-dynamics-tiny, or others of `worldline evaluate`
set -euo pipefail
train=${1:-cache/builtins/train} val=${2:-cache/builtins/val} work=${3:-cache/state_ways}
here=$(dirname "$(realpath "$0")")
family=${FAMILY:-compression}
ways=${WAYS:-none add adaln cross_attention map adaln+map}

# CPU time of a step in hundredths of adaln's, as measured for the tiny recipes (docs/states.md).
cost() {
    case "$family $1" in
        "compression none" | "compression add") echo 94 ;;
        "compression map") echo 101 ;;
        "compression cross_attention" | "compression "*"+map") echo 109 ;;
        "sampling none") echo 98 ;;
        "sampling map" | "sampling "*"+map") echo 108 ;;
        "sampling cross_attention") echo 118 ;;
        *) echo 100 ;;
    esac
}

judged="--studies --lpips off ${JUDGED:---data twin-mini-val --inverse-dynamics inverse-dynamics-tiny}"
if [ "$family" = compression ]; then
    judged="$judged --num-clips ${CLIPS:-60}"
else
    judged="$judged --num-clips ${CLIPS:-24} --window-stride 43 --num-samples 4 --batch-size 2"
fi
for seed in ${SEEDS:-0}; do
    for episodes in ${EPISODES:-400}; do
        for way in $ways; do
            run=$work/$family/$episodes/$way/$seed
            [ -e "$run/evaluation/metrics.json" ] && continue
            entering="--model.conditioning $way"
            [ "$way" != none ] || entering="--model.unconditional True"
            steps=$((${STEPS:-700} * 100 / $(cost "$way")))
            [ "${EQUAL:-time}" = time ] || steps=${STEPS:-700}
            if [ -e "$run/checkpoints" ]; then
                worldline train --resume "$run"
            else
                worldline train "${RECIPE:-${family}_tiny}" --data.path "$train" --data.val-path "$val" \
                    --data.train-episodes ":$episodes" --data.cache "$work/cache" $entering --seed "$seed" \
                    --steps "$steps" --evaluate-every "$steps" --checkpoint-every 100 ${OPTIONS:-} --out "$run"
            fi
            worldline evaluate "$run" $judged
        done
    done
done
python "$here/state_ways.py" "$work/$family"
