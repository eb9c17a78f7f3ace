#!/usr/bin/env bash
# Make everything that ships in src/worldline/assets (what is driven: scripts/driven.sh), from nothing. Two stages took
# minutes of a GPU and take hours of a CPU, all others took four and a half hours; the twin needs OpenGL (EGL or OSMesa),
# nothing needs a network. The checkpoints are trained by the recipes of the same names, for longer and on more episodes
# of the same twin than ship; judged on twin_mini/val, whose seed no training set shares.
set -euo pipefail
cd "$(dirname "$0")/.."
assets=src/worldline/assets
work=${WORK:-cache/builtins}

# --- twin-mini ---
worldline data twin $assets/twin_mini/train --episodes 80 --seed 0 --snapshot-every 120
rm -r $assets/twin_mini/train/physics # 2 MB that training does not read; the validation episodes keep theirs
worldline data twin $assets/twin_mini/val --episodes 20 --seed 1000 --snapshot-every 120

# --- the larger set the checkpoints are trained on, and its own validation set, the first 20 of which are twin_mini/val ---
worldline data twin $work/train --episodes 1600 --seed 0
worldline data twin $work/val --episodes 48 --seed 1000
data="--data.path $work/train --data.val-path $work/val --data.cache $work/cache"
few="$data --data.train-episodes :400"

# --- tokens, by a small decoder; a better one under the same tokens (five minutes of a GPU); then one that sees the
# frame before, with LPIPS in its loss (35 minutes of a core) ---
small="--model.decoder-widths --model.decoder-blocks --model.decoder-past None --model.decoder-sees False"
worldline train tokenizer_tiny $few $small --out $work/tokenizer_first
worldline train tokenizer_tiny $few $small --init-from $work/tokenizer_first --optimizer.lr 8e-4 \
    --optimizer.warmup-steps 20 --steps 1000 --seed 1 --out $work/tokenizer_second
worldline train tokenizer_tiny $few --init-from $work/tokenizer_second --model.decoder-sees False \
    --model.keep-tokens True --batch-size 32 --steps 4915 --out $work/tokenizer_third
worldline train tokenizer_tiny $data --init-from $work/tokenizer_third --model.keep-tokens True \
    --model.lpips-weight 0.02 --optimizer.lr 1e-3 --optimizer.warmup-steps 50 --steps 4000 --out $work/tokenizer
python scripts/ship.py $work/tokenizer $assets/tokenizer_tiny

# --- the world on them: three minutes of a GPU, then 55 of a core with four times the episodes; then calibrated ---
worldline train compression_tiny $few --batch-size 32 --start-offsets 6 --steps 1500 --out $work/world_first
worldline train compression_tiny $data --init-from $work/world_first --allow-different data split statistics \
    --optimizer.lr 1.5e-3 --batch-size 8 --start-offsets 6 --steps 7500 --out $work/world_long
worldline train compression_tiny $data --data.val-episodes 20: --init-from $work/world_long --allow-different validation \
    --model.calibrated True --steps 1 --optimizer.lr 1e-12 --optimizer.warmup-steps 0 --optimizer.ema-decay None \
    --validation-clips 64 --out $work/world
python scripts/ship.py $work/world $assets/compression_tiny $assets/tokenizer_tiny --eight-bits

# --- latents; under the same latents a decoder for whole windows, LPIPS in its loss, and what sees the last context frame
# (34 minutes of a core) ---
whole="--model.keep-latents True --data.pattern.window 77 --data.pattern.repeat-last 1 --data.window-stride 8"
whole+=" --data.augment unflipped --optimizer.lr 1e-3 --optimizer.warmup-steps 50 --batch-size 2"
worldline train vae_tiny $few --out $work/vae_first
worldline train vae_tiny $data $whole --init-from $work/vae_first --allow-different pattern data split statistics \
    --steps 1500 --out $work/vae_second
worldline train vae_tiny $data $whole --init-from $work/vae_second --model.lpips-weight 0.02 --steps 1000 --out $work/vae_third
worldline train vae_tiny $data $whole --init-from $work/vae_third --model.lpips-weight 0.02 --model.decoder-sees True \
    --steps 1500 --out $work/vae
python scripts/ship.py $work/vae $assets/vae_tiny

# --- the world on them: first without a map and on fewer episodes, as it was ---
worldline train sampling_any $few --tokenizer $work/vae --out $work/sampling_first
worldline train sampling_tiny $data --tokenizer $work/vae --init-from $work/sampling_first \
    --allow-different data split statistics --model.flow.pure-noise 0.2 --steps 12000 --out $work/sampling
python scripts/ship.py $work/sampling $assets/sampling_tiny $assets/vae_tiny --eight-bits

# --- the judge: its validation episodes (which say what is readable) are not those of twin_mini/val ---
worldline train inverse_dynamics_tiny $few --data.val-episodes 20: --out $work/inverse_dynamics
python scripts/ship.py $work/inverse_dynamics $assets/inverse_dynamics_tiny
