#!/usr/bin/env bash
# Make the driven world that ships, its tokenizer and its data, from nothing. About three hours of one CPU core; the twin
# needs OpenGL (EGL or OSMesa), nothing needs a network. Judged on episodes of seed 1000, whose first 8 ship.
set -euo pipefail
cd "$(dirname "$0")/.."
assets=src/worldline/assets
work=${WORK:-cache/driven}
table="--view table --fps 15 --size 128 --snapshot-every 180"

# --- data: play at the table, and episodes of tasks of which half fail ---
worldline data twin $assets/twin_table --episodes 8 --seed 1000 --frames 180 $table
worldline data twin $work/val --episodes 20 --seed 1000 --frames 180 $table
worldline data twin $work/play --episodes 480 --seed 0 $table
worldline data twin $work/some_play --episodes 120 --seed 0 $table
worldline data twin $work/tasks --tasks touch push topple avoid --failures 0.5 --episodes 400 --seed 500 $table
beside="--data.val-path $work/val --data.cache $work/cache"

# --- the tokenizer, of single frames ---
worldline train tokenizer_driven --data.path $work/play $beside --data.train-episodes : --steps 4000 --out $work/tokenizer
python scripts/ship.py $work/tokenizer $assets/tokenizer_driven

# --- the world: on true grids, and then, more and more of it tasks, half of the time on its own roll-outs ---
worldline train driven_tiny --data.path $work/play $beside --data.train-episodes : --tokenizer $work/tokenizer \
    --model.horizon-grids 8 --batch-size 5 --steps 1800 --out $work/first
worldline train driven_tiny --data.path $work/some_play $work/tasks $beside --data.train-episodes : \
    --tokenizer $work/tokenizer --init-from $work/first --data.window-stride 2 --batch-size 3 --optimizer.lr 1e-3 \
    --optimizer.warmup-steps 20 --steps 700 --model.own-from 0.5 --out $work/world
python scripts/ship.py $work/world $assets/driven_tiny $assets/tokenizer_driven
