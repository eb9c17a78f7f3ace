#!/usr/bin/env bash
# A real robot, both tracks: train on episodes 0:56, choose on 56:68, report once on 68:80 (docs/results_g1.md).
#
#   scripts/g1.sh [G1 [WORK]]   G1: the folder of the data set (G1 if not given); WORK: of the runs (cache/g1)
#
# How a forecast is shown is chosen on 56:68 before anything is reported; the choice stands below as `shown`. About
# four hours on one core. What is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
g1=${1:-G1}
work=${2:-cache/g1}
data="--data.path $g1 --data.val-path None --data.train-episodes 0:56 --data.val-episodes 56:68 --data.cache $work/cache"
crop="--data.cache-size 96 --data.augment wide"
world="--start-offsets 24 --data.augment unflipped --model.dropout 0.1 --optimizer.ema-decay 0.998"

once() { [ -e "$work/$1" ] || worldline train "${@:2}" --out "$work/$1"; }

# --- the compression track: a tokenizer that sees the frame before, a world, the same one without states ---
once tokenizer tokenizer_tiny $data $crop --init-from tokenizer-tiny --model.lpips-weight 0.02 --steps 3200
large="--tokenizer $work/tokenizer --batch-size 32 --steps 750 --model.calibrated True"
once world compression_any $data $world $large
once unconditional compression_tiny_unconditional $data $world $large

# --- choose: how a forecast is shown ---
for shown in "--decode-mode tokens" "--decode-mode mean" "--decode-mode tokens --blend-last-frame" "--decode-mode mean --blend-last-frame"; do
    worldline evaluate "$work/world" --num-clips None --condition-samples 0 $shown --out "$work/choice${shown//[ -]/}"
done
shown="--decode-mode mean"

# --- to judge what the forecasts show: chosen on 56:68 (docs/inverse_dynamics.md) ---
once inverse_dynamics inverse_dynamics_tiny $data --model.dropout 0.2 --steps 2500
reader="--inverse-dynamics $work/inverse_dynamics"
worldline evaluate "$work/inverse_dynamics" --episodes 68:80 --num-clips None

# --- report: the compression track ---
worldline evaluate "$work/tokenizer" --episodes 68:80 --num-clips None
worldline evaluate "$work/world" --unconditional "$work/unconditional" --episodes 68:80 --num-clips None $shown $reader

# --- report: the sampling track; a VAE that sees the last context frame, under latents that stay ---
whole="--data.pattern.window 77 --data.pattern.repeat-last 1 --batch-size 2"
once vae_first vae_tiny $data $crop --init-from vae-tiny --model.lpips-weight 0.02 --optimizer.lr 1.5e-3 --steps 1500
once vae_second vae_tiny $data $crop $whole --init-from "$work/vae_first" --model.lpips-weight 0.02 \
    --optimizer.lr 3e-4 --optimizer.warmup-steps 20 --steps 300 --seed 1
once vae vae_tiny $data $crop $whole --init-from "$work/vae_second" --model.lpips-weight 0.02 --model.keep-latents True \
    --model.decoder-sees True --optimizer.lr 1e-3 --optimizer.warmup-steps 50 --steps 1200
once sampling sampling_any $data --tokenizer "$work/vae" --model.flow.pure-noise 0.2 --steps 4000
worldline evaluate "$work/vae" --episodes 68:80 --num-clips 64
worldline evaluate "$work/sampling" --episodes 68:80 --num-clips 32 --window-stride 43 --num-samples 20 --mean-draws 1 4 8 \
    --batch-size 2 $reader
