#!/usr/bin/env bash
# Grid by grid or all at once: train the ST-Transformer both ways for equal steps on the same clips, evaluate both on the
# same held-out clips, and print paired differences (docs/beyond_tokens.md). What is there already is kept, and a training
# that was interrupted goes on, so it can be called again and again.
#
#   scripts/direct.sh                    the twin, of scripts/builtins.sh: choose on episodes 20: of its validation set,
#                                        because the first 20 are twin-mini-val, which is reported
#   scripts/direct.sh G1 [TOKENIZER]     a real robot: train 0:56, choose on 56:68, report on 68:80 (scripts/g1.sh)
#
# WORK=cache/direct       folder of the runs
# TRAIN, VAL              of the twin: cache/builtins/train, cache/builtins/val
# RECIPE=compression_any  of both ways; on the twin also compression_tiny, which has the map of the robot
# STEPS=2500              of each training; a step takes about 0.35 s of one core
# SEEDS="0"               a list: each decides the clips of both trainings, and their first weights where FROM is not given
# FROM=RUN                begin both ways with the weights of this world, whose own training went grid by grid
# OFFSETS=4               how often each episode is tokenized for training, each time from another frame on
# OPTIONS                 more of `worldline train`, for both ways: "--batch-size 32"
# CLIPS                   of each evaluation: 60 on the twin, all on the G1
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-cache/direct}
recipe=${RECIPE:-compression_any}

data="--start-offsets ${OFFSETS:-4} --data.cache $work/cache"
if [ $# = 0 ]; then
    data+=" --data.path ${TRAIN:-cache/builtins/train} --data.val-path ${VAL:-cache/builtins/val} --data.val-episodes 20:"
    held_out="--data twin-mini-val --num-clips ${CLIPS:-60}"
else
    data+=" --data.path $1 --data.val-path None --data.train-episodes 0:56 --data.val-episodes 56:68"
    data+=" --tokenizer ${2:-cache/g1/tokenizer_0.75} --data.augment unflipped --model.dropout 0.1 --optimizer.ema-decay 0.998"
    held_out="--data $1 --episodes 68:80 --num-clips ${CLIPS:-None}"
fi
begin=${FROM:+"--init-from $FROM --optimizer.lr 1e-3 --optimizer.warmup-steps 50"}
seldom="--evaluate-every 1000 --checkpoint-every 250"

trained() { # folder and options: train, or go on where it stopped
    if [ -e "$work/$1/config.json" ]; then
        worldline train --resume "$work/$1"
    else
        worldline train $recipe $data $seldom "${@:2}" --out "$work/$1"
    fi
}

evaluated() { # folder and options: train and evaluate, unless that is done
    [ -e "$work/evaluated/$1/metrics.json" ] && return
    trained "$@"
    worldline evaluate "$work/$1" $held_out --condition-samples 0 --lpips off --out "$work/evaluated/$1"
}

asked() { # option of a way
    [ "$1" = direct ] && echo "--model.direct True" || echo "--model.direct False"
}

metrics="full_ce top500_ce_residual token_accuracy top500_coverage psnr_db_last psnr_db_mean"
for seed in ${SEEDS:-0}; do
    for way in by_grid direct; do
        evaluated "${way}_$seed" $(asked $way) $begin ${OPTIONS:-} --steps "${STEPS:-2500}" --seed "$seed" \
            --validation-clips 32
    done
    worldline compare "$work/evaluated/direct_$seed" "$work/evaluated/by_grid_$seed" --metric $metrics
    # The same weights, calibrated on the clips that choose: one step that changes none of them.
    for way in by_grid direct; do
        evaluated "${way}_${seed}_calibrated" $(asked $way) --init-from "$work/${way}_$seed" \
            --model.calibrated True --steps 1 ${OPTIONS:-} --optimizer.lr 1e-12 --optimizer.warmup-steps 0 \
            --optimizer.ema-decay None --validation-clips 64
    done
    worldline compare "$work/evaluated/direct_${seed}_calibrated" "$work/evaluated/by_grid_${seed}_calibrated" \
        "$work/evaluated/by_grid_$seed" --metric $metrics
done

# Both ways over all seeds, as they are and calibrated.
for end in "" _calibrated; do
    at_once=() by_grid=()
    for seed in ${SEEDS:-0}; do
        at_once+=("$work/evaluated/direct_$seed$end")
        by_grid+=("$work/evaluated/by_grid_$seed$end")
    done
    python scripts/over_seeds.py "${at_once[@]}" --minus "${by_grid[@]}"
done
