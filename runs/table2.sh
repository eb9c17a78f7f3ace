#!/usr/bin/env bash
# The rows of the report's table 2, one command each: how many samples, steps and how much guidance a forecast needs.
#
#   runs/table2.sh                          the built-in world on held-out clips of twin-mini (two CPU cores, an hour)
#   runs/table2.sh RUN --num-clips None     any run over latents; further options go to every row
#
# Rows "with CFG" and "without" differ by the recipe (sampling_revontuli_cfg, sampling_revontuli): give either run.
# Each evaluation also holds one sample, smaller means, the medoid, blur + histogram matching, copies and ablations.
set -euo pipefail
run=${1:-sampling-tiny}
shift || true
out=runs/table2/$(basename "$run")

row() { # name, samples, steps, guidance
    worldline evaluate "$run" --protocol sampling --out "$out/$1" \
        --num-samples "$2" --steps "$3" --guidance "$4" "${@:5}"
}

row n1_steps20 1 20 1.0 "$@"
row n5_steps20 5 20 1.0 "$@"
row n20_steps20 20 20 1.0 "$@"
row n20_steps20_cfg2.0 20 20 2.0 "$@"
row n20_steps20_cfg1.5 20 20 1.5 "$@"
row n20_steps100_cfg1.5 20 100 1.5 "$@"
row n20_steps100_cfg1.0 20 100 1.0 "$@"
