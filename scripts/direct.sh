#!/usr/bin/env bash
# Grid by grid or all at once: train the ST-Transformer both ways for equal steps on the same clips, evaluate both on the
# same held-out clips, and print paired differences (docs/beyond.md). What is there already is kept, and a training that
# was interrupted goes on, so it can be called again and again.
#
#   scripts/direct.sh twin TRAIN VAL WORK [STEPS [SEEDS]]   TRAIN, VAL: two folders of `worldline data twin`
#   scripts/direct.sh g1 G1 WORK TOKENIZER [STEPS [SEEDS]]  train 0:56, choose on 56:68, report on 68:80
#
# STEPS: of each training (2500); SEEDS: a list in quotes ("0"). TOKENIZER: of `scripts/g1.sh`. The first steps of every
# world are the same, but for the way: the seed decides its first weights and its clips. On one core a step takes about
# 0.35 s.
set -euo pipefail

case $1 in
twin)
    train="--data.path $2 --data.val-path $3" work=$4 steps=${5:-2500} seeds=${6:-0} held_out="--data twin-mini-val --num-clips 60"
    ;;
g1)
    train="--data.path $2 --data.val-path None --data.train-episodes 0:56 --data.val-episodes 56:68 --tokenizer $4"
    train+=" --start-offsets 6 --data.augment unflipped --model.dropout 0.1 --optimizer.ema-decay 0.998"
    work=$3 steps=${5:-2500} seeds=${6:-0} held_out="--data $2 --episodes 68:80 --num-clips None"
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

trained() { # recipe, folder, seed: train, or go on
    [ -e "$work/$2.done" ] && return
    if [ -e "$work/$2/config.json" ]; then
        worldline train --resume "$work/$2"
    else
        worldline train "$1" $train --data.cache "$work/cache" --steps "$steps" --seed "$3" --validation-clips 32 \
            --evaluate-every 1000 --checkpoint-every 250 --out "$work/$2"
    fi
    touch "$work/$2.done"
}

for seed in $seeds; do
    for way in autoregressive direct; do
        recipe=compression_tiny
        [ $way = autoregressive ] || recipe=compression_tiny_direct
        trained $recipe "${way}_$seed" "$seed"
        worldline evaluate "$work/${way}_$seed" $held_out --condition-samples 0 --out "$work/evaluated/${way}_$seed"
    done
    worldline compare "$work/evaluated/direct_$seed" "$work/evaluated/autoregressive_$seed" \
        --metric full_ce top500_ce_residual token_accuracy top500_coverage psnr_db_last psnr_db_mean
done
