#!/usr/bin/env bash
# A real robot, both tracks: train on episodes 0:56, choose on 56:68, report once on 68:80 (docs/results.md).
#
#   scripts/g1.sh [G1 [WORK]]   G1: the folder of the data set (G1 if not given); WORK: of the runs (cache/g1)
#
# Everything that was chosen on 56:68 is printed before the worlds that are reported are trained; the choice itself
# stands below as `hysteresis` and `shown`. About three hours on one core. What is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
g1=${1:-G1}
work=${2:-cache/g1}
data="--data.path $g1 --data.val-path None --data.train-episodes 0:56 --data.val-episodes 56:68 --data.cache $work/cache"
crop="--data.cache-size 96 --data.augment wide"
world="--start-offsets 24 --data.augment unflipped --model.dropout 0.1 --optimizer.ema-decay 0.998"

once() { [ -e "$work/$1" ] || worldline train "${@:2}" --out "$work/$1"; }

# --- choose: the tokens and how a forecast is shown, by short worlds ---
for h in 0.0 0.75; do
    once "tokenizer_$h" tokenizer_tiny $data $crop --model.hysteresis $h --init-from tokenizer-tiny --steps 3200
    once "short_$h" compression_any $data $world --tokenizer "$work/tokenizer_$h" --steps 1500
    for shown in "--decode-mode tokens" "--decode-mode mean" "--decode-mode tokens --blend-last-frame" "--decode-mode mean --blend-last-frame"; do
        worldline evaluate "$work/short_$h" --num-clips None $shown --out "$work/choice/$h ${shown//--/}"
    done
done
hysteresis=0.75
shown="--decode-mode mean --blend-last-frame"

# --- to judge what the forecasts show: chosen on 56:68 (docs/inverse_dynamics.md) ---
once inverse_dynamics inverse_dynamics_tiny $data --model.dropout 0.2 --steps 2500
reader="--inverse-dynamics $work/inverse_dynamics"
worldline evaluate "$work/inverse_dynamics" --episodes 68:80 --num-clips None

# --- report: the compression track ---
# (the reported world: three minutes of a GPU, in fp32; then calibrated on 56:68, which changes no picture)
large="--tokenizer $work/tokenizer_$hysteresis --batch-size 32 --steps 1500"
once world_first compression_any $data $world $large
once world compression_any $data $world --tokenizer "$work/tokenizer_$hysteresis" --init-from "$work/world_first" \
    --model.calibrated True --validation-clips 64 --steps 1 --optimizer.lr 1e-12 --optimizer.warmup-steps 0 --start-offsets 1
once unconditional compression_tiny_unconditional $data $world $large
worldline evaluate "$work/tokenizer_$hysteresis" --episodes 68:80 --num-clips None
worldline evaluate "$work/world" --unconditional "$work/unconditional" --episodes 68:80 --num-clips None $shown $reader

# --- report: the sampling track ---
once vae_first vae_tiny $data $crop --init-from vae-tiny --optimizer.lr 1.5e-3 --steps 1500
once vae vae_tiny $data $crop --init-from "$work/vae_first" --data.pattern.window 77 --data.pattern.repeat-last 1 \
    --optimizer.lr 3e-4 --optimizer.warmup-steps 20 --batch-size 2 --steps 300 --seed 1
once sampling sampling_any $data --tokenizer "$work/vae" --steps 3000
worldline evaluate "$work/vae" --episodes 68:80 --num-clips 64
worldline evaluate "$work/sampling" --episodes 68:80 --num-clips 32 --window-stride 43 --num-samples 20 --batch-size 2 $reader
