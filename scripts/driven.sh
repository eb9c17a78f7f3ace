#!/usr/bin/env bash
# Make the driven world that ships, its tokenizer and its data, from nothing. The twin needs OpenGL (EGL or OSMesa), nothing
# needs a network. Data and tokenizer take about three hours of one CPU core. The world took five minutes of an H100 that
# also trained others, from tokens (`worldline data tokenize`); a CPU needs 5 to 9 hours of a core, by
# arithmetic from 0.7 to 1.2 s that a step of 3 clips of the smaller world took on an AMD EPYC.
# Judged on episodes of seed 1000, whose first 8 ship; `choose` was looked at while training.
set -euo pipefail
cd "$(dirname "$0")/.."
assets=src/worldline/assets
work=${WORK:-cache/driven}
table="--view table --fps 15 --size 128 --snapshot-every 180"

# --- data: play at the table, and episodes of tasks of which half fail ---
worldline data twin $assets/twin_table --episodes 8 --seed 1000 --frames 180 $table
worldline data twin $work/val --episodes 20 --seed 1000 --frames 180 $table
worldline data twin $work/play --episodes 480 --seed 0 $table
worldline data twin $work/tasks --tasks touch push topple avoid --failures 0.5 --episodes 400 --seed 500 $table
worldline data twin $work/more_tasks --tasks touch push topple avoid --failures 0.5 --episodes 800 --seed 600 $table
worldline data twin $work/choose --episodes 12 --seed 3000 --frames 100 $table
beside="--data.val-path $work/val --data.cache $work/cache"

# --- the tokenizer, of single frames ---
worldline train tokenizer_driven --data.path $work/play $beside --data.train-episodes : --steps 4000 --out $work/tokenizer
python scripts/ship.py $work/tokenizer $assets/tokenizer_driven

# --- the world: on true grids at one learning rate, and then mostly on its own roll-outs, down to nothing ---
world="--data.path $work/play $work/tasks $work/more_tasks --data.train-episodes : --data.val-path $work/choose
    --data.val-episodes : --data.cache $work/cache --tokenizer $work/tokenizer --data.window-stride 2
    --model.width 192 --model.layers 5"
worldline train driven_tiny $world --batch-size 32 --optimizer.schedule constant --optimizer.warmup-steps 150 --steps 838 --out $work/first
worldline train driven_tiny $world --batch-size 64 --init-from $work/first --optimizer.lr 1.5e-3 --optimizer.warmup-steps 20 \
    --steps 269 --model.own-from 0.3 --out $work/world
python scripts/ship.py $work/world $assets/driven_tiny $assets/tokenizer_driven --eight-bits
