#!/usr/bin/env bash
# Grid by grid or all at once: train the ST-Transformer both ways for equal steps on the same clips, evaluate both on the
# same held-out clips, and print paired differences (docs/beyond_tokens.md). What is there already is kept, and a training
# that was interrupted goes on, so it can be called again and again.
#
#   scripts/direct.sh twin TRAIN VAL WORK      TRAIN, VAL: as scripts/builtins.sh makes them; choose on VAL's episodes
#                                              20:, because the first 20 are twin-mini-val, which is reported
#   scripts/direct.sh g1 G1 WORK TOKENIZER     train 0:56, choose on 56:68, report on 68:80; TOKENIZER: of scripts/g1.sh
#
# STEPS=2500   of each training
# SEEDS="0"    a list: each seed decides the clips of both trainings, and their first weights where FROM is not given
# FROM=RUN     begin both ways with the weights of this world, whose own training went grid by grid
# OFFSETS=4    how often each episode is tokenized for training, each time from another frame on
# CLIPS        of each evaluation: 60 on the twin, all on the G1
# A step takes about 0.35 s of one core.
set -euo pipefail
usage() { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2 && exit 2; }

case ${1:-}-$# in
twin-4)
    data="--data.path $2 --data.val-path $3 --data.val-episodes 20:" work=$4
    held_out="--data twin-mini-val --num-clips ${CLIPS:-60}"
    ;;
g1-4)
    data="--data.path $2 --data.val-path None --data.train-episodes 0:56 --data.val-episodes 56:68 --tokenizer $4"
    data+=" --data.augment unflipped --model.dropout 0.1 --optimizer.ema-decay 0.998"
    work=$3 held_out="--data $2 --episodes 68:80 --num-clips ${CLIPS:-None}"
    ;;
*) usage ;;
esac
begin=${FROM:+"--init-from $FROM --optimizer.lr 1e-3 --optimizer.warmup-steps 50"}
data+=" --start-offsets ${OFFSETS:-4} --data.cache $work/cache"
seldom="--evaluate-every 1000 --checkpoint-every 250"

trained() { # folder, recipe and options: train, or go on where it stopped
    if [ -e "$work/$1/config.json" ]; then
        worldline train --resume "$work/$1"
    else
        worldline train "${@:2}" $data $seldom --out "$work/$1"
    fi
}

evaluated() { # folder, recipe and options: train and evaluate, unless that is done
    [ -e "$work/evaluated/$1/metrics.json" ] && return
    trained "$@"
    worldline evaluate "$work/$1" $held_out --condition-samples 0 --lpips off --out "$work/evaluated/$1"
}

metrics="full_ce top500_ce_residual token_accuracy top500_coverage psnr_db_last psnr_db_mean"
for seed in ${SEEDS:-0}; do
    for way in compression_tiny_direct compression_tiny; do
        evaluated "${way}_$seed" $way $begin --steps "${STEPS:-2500}" --seed "$seed" --validation-clips 32
    done
    worldline compare "$work/evaluated/compression_tiny_direct_$seed" "$work/evaluated/compression_tiny_$seed" --metric $metrics
    # The same weights, calibrated on the clips that choose: one step that changes none of them.
    for way in compression_tiny_direct compression_tiny; do
        evaluated "${way}_${seed}_calibrated" $way --init-from "$work/${way}_$seed" --model.calibrated True --steps 1 \
            --optimizer.lr 1e-12 --optimizer.warmup-steps 0 --optimizer.ema-decay None --validation-clips 64
    done
    worldline compare "$work/evaluated/compression_tiny_direct_${seed}_calibrated" "$work/evaluated/compression_tiny_${seed}_calibrated" \
        "$work/evaluated/compression_tiny_$seed" --metric $metrics
done
