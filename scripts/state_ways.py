"""Tabulate the runs of scripts/state_ways.sh: each way's figures, and paired differences from adaLN.

python scripts/state_ways.py WORK/compression > table.md

Numbers of a clip are means over the seeds that all ways of a table have; intervals are over episodes (95 %).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from over_seeds import each_seed, over_episodes, said
from torch import Tensor

from worldline.evaluation.compare import Scored, load_scored
from worldline.metrics.table import METRICS

FIGURES = ("psnr_db_last", "psnr_db_mean", "full_ce", "teacher_forced_ce", "state_error_mean")
ORDER = ("none", "add", "adaln", "cross_attention", "map", "add+map", "adaln+map", "cross_attention+map")
REFERENCE, SHUFFLED = "adaln", "shuffled_states"


def main(work: Path) -> None:
    found: dict[int, dict[str, dict[str, Scored]]] = {}  # episodes -> way -> seed
    for path in sorted(work.glob("*/*/*/evaluation/metrics.json")):
        episodes, way, seed = path.relative_to(work).parts[:3]
        found.setdefault(int(episodes), {}).setdefault(way, {})[seed] = load_scored(path.parents[1])
    if not found:
        raise SystemExit(f"{work} has no evaluated run of scripts/state_ways.sh")
    for episodes, ways in sorted(found.items()):
        seeds = sorted(set.intersection(*map(set, ways.values())))
        if not seeds:
            raise SystemExit(f"{work}/{episodes}: no seed has all of {', '.join(ways)}; run the others too")
        print(f"\n## {episodes} episodes, seeds {', '.join(seeds)}\n")
        table({way: [ways[way][seed] for seed in seeds] for way in ORDER if way in ways})


def table(ways: dict[str, list[Scored]]) -> None:
    """Figures of each way and, under them, what they are less those of adaLN on the same clips."""
    first = next(iter(ways.values()))[0]
    names = [name for name in FIGURES if name in first.row(None).metrics]
    headings = [f"{METRICS[name].label} ({METRICS[name].unit})" for name in names]
    print("| states | steps |", " | ".join(headings), "| shuffled states cost (dB, last frame) |")
    print("|" + "---|" * (len(names) + 3))
    for way, runs in ways.items():
        cells = [said(over_episodes(first, numbers(first, runs, name))) for name in names]
        print(f"| {way} | {steps_of(runs[0])} |", " | ".join(cells), f"| {audit(first, runs)} |")
    for way, runs in ways.items():
        if way != REFERENCE and REFERENCE in ways:
            pairs = [(numbers(first, runs, n), numbers(first, ways[REFERENCE], n)) for n in names]
            cells = [said(over_episodes(first, a - b)) for a, b in pairs]
            print(f"| {way} minus {REFERENCE} | |", " | ".join(cells), "| |")


def audit(first: Scored, runs: Sequence[Scored]) -> str:
    if SHUFFLED not in {row.id for row in runs[0].evaluation.rows}:
        return "-"
    true, other = numbers(first, runs, "psnr_db_last"), numbers(first, runs, "psnr_db_last", SHUFFLED)
    return said(over_episodes(first, true - other))


def numbers(first: Scored, runs: Sequence[Scored], metric: str, row: str | None = None) -> Tensor:
    """One number for each clip of the first run, mean over the runs."""
    return each_seed(first, runs, metric, row).mean(dim=0)


def steps_of(run: Scored) -> int:
    return int(run.receipt.identities.models["world"].step)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
