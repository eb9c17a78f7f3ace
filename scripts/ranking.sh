#!/usr/bin/env bash
# Policies, success classifier and ranking of a driven world, in one go (docs/ranking.md).
#
#   scripts/ranking.sh [WORLD [OUT]]     WORLD: run folder or built-in (driven-tiny if not given); OUT: runs/ranked
#
# Two processes share the tasks. What is there already is kept: the same command again goes on. More by the environment:
#   ALSO=RUN LABEL="without failures"    another world, ranked by the same policies
#   UNCONDITIONAL=RUN                    a world without states
#   STARTS=20 ABLATION_STARTS=8          starts of each task; of everything but world and twin
#   TOKENIZER=tokenizer-driven           the world's, whose frames the classifier learns to read, too
set -euo pipefail
world=${1:-driven-tiny}
out=${2:-runs/ranked}
options=(--policies "$out/policies" --starts "${STARTS:-20}" --ablation-starts "${ABLATION_STARTS:-8}" --out "$out/ranking")
[ -z "${UNCONDITIONAL:-}" ] || options+=(--unconditional "$UNCONDITIONAL")
[ -z "${ALSO:-}" ] || options+=(--also "$ALSO" "${LABEL:-another world}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

worldline policies "$out/policies" --tokenizer "${TOKENIZER:-tokenizer-driven}"
for tasks in "touch push" "topple avoid"; do
    worldline rank "$world" "${options[@]}" --tasks $tasks >/dev/null &
done
wait
worldline rank "$world" "${options[@]}" --tasks touch push topple avoid
worldline report "$out"
