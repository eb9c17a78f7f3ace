#!/usr/bin/env bash
# Make everything that ships in src/worldline/assets, from nothing. About five hours on two CPU cores; the twin needs
# OpenGL (EGL or OSMesa), nothing needs a network. The checkpoints are trained by the recipes of the same names, for
# longer and on more episodes of the same twin than ship; judged on twin_mini/val, whose seed no training set shares.
set -euo pipefail
cd "$(dirname "$0")/.."
assets=src/worldline/assets
work=${WORK:-cache/builtins}

# --- twin-mini ---
worldline data twin $assets/twin_mini/train --episodes 80 --seed 0 --snapshot-every 120
rm -r $assets/twin_mini/train/physics # 2 MB that training does not read; the validation episodes keep theirs
worldline data twin $assets/twin_mini/val --episodes 20 --seed 1000 --snapshot-every 120

# --- the larger set the checkpoints are trained on, and its own validation set ---
worldline data twin $work/train --episodes 400 --seed 0
worldline data twin $work/val --episodes 48 --seed 1000
data="--data.path $work/train --data.val-path $work/val --data.cache $work/cache"

# --- checkpoints ---
worldline train tokenizer_tiny $data --out $work/tokenizer_first
worldline train tokenizer_tiny $data --init-from $work/tokenizer_first --optimizer.lr 8e-4 --optimizer.warmup-steps 20 \
    --steps 1000 --seed 1 --out $work/tokenizer
python scripts/ship.py $work/tokenizer $assets/tokenizer_tiny
worldline train compression_tiny $data --tokenizer $work/tokenizer --steps 13000 --out $work/world
python scripts/ship.py $work/world $assets/compression_tiny $assets/tokenizer_tiny
worldline train vae_tiny $data --out $work/vae
python scripts/ship.py $work/vae $assets/vae_tiny
worldline train sampling_tiny $data --tokenizer $work/vae --out $work/sampling
python scripts/ship.py $work/sampling $assets/sampling_tiny $assets/vae_tiny

# --- the judge: its validation episodes (which say what is readable) are not those of twin_mini/val ---
worldline train inverse_dynamics_tiny $data --data.val-episodes 20: --out $work/inverse_dynamics
python scripts/ship.py $work/inverse_dynamics $assets/inverse_dynamics_tiny
