#!/usr/bin/env bash
# Samples in few calls (docs/few_calls.md): a stretch of training with shortcuts, beside an ordinary one of the same
# seconds (a step with shortcuts costs 1.24 ordinary ones), each from the built-in world. About 40 minutes of one core,
# after scripts/builtins.sh, whose 1,600 episodes of the twin it takes.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-cache/few_calls}
builtins=${BUILTINS:-cache/builtins}
data="--data.path $builtins/train --data.val-path $builtins/val --data.cache $builtins/cache"
more="--tokenizer vae-tiny --init-from sampling-tiny --optimizer.lr 5e-4 --optimizer.warmup-steps 50"

[ -d "$work/ordinary" ] || worldline train sampling_tiny $data $more --steps 1500 --out "$work/ordinary"
[ -d "$work/few" ] || worldline train sampling_few_tiny $data $more --steps 1210 --out "$work/few"

judged="--data twin-mini-val --tokenizer vae-tiny --num-clips 24 --window-stride 43 --num-samples 4 --condition-samples 0"
for calls in 1 2 4; do
    worldline evaluate "$work/few" $judged --steps $calls --out "$work/few_$calls"
done
for calls in 20 4 2 1; do
    worldline evaluate "$work/ordinary" $judged --steps $calls --out "$work/ordinary_$calls"
done
for calls in 1 2 4; do
    worldline compare "$work/few_$calls" "$work/ordinary_20" --row sample --metric lpips_last lpips_mean psnr_db_last
done
