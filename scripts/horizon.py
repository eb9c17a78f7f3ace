"""Plot and tabulate what benchmarks/horizon.py measured, for docs/sessions.md, so that no figure there is made by hand.

python scripts/horizon.py OUT.svg benchmarks/results/horizon_twin.json ...
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from plots import DASHES, GREY

COLOURS = {"forecast": "#1e88e5", "copy_last": "#8a8f98", "live_twin": "#43a047", "true_context": "#8e24aa"}
PRINTED = (1, 2, 4, 6, 8, 10)
"""Seconds of the table."""


def main(out: Path, paths: list[Path]) -> None:
    """Draw one picture for each world of these files, and print one table of all."""
    found = {name: world for path in paths for name, world in json.loads(path.read_text()).items() if _is_world(world)}
    print("| world, row | " + " | ".join(f"second {second}" for second in PRINTED) + " |")
    print("|---" * (len(PRINTED) + 1) + "|")
    style = {"svg.hashsalt": "worldline", "svg.fonttype": "none", "font.size": 9}
    style |= {name: GREY for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    with matplotlib.rc_context(style):
        size = (4.4 * len(found), 3.2)
        figure, grid = pyplot.subplots(1, len(found), figsize=size, squeeze=False, layout="constrained")
        for axes, (name, world) in zip(grid[0], found.items(), strict=True):
            for number, (row, seconds) in enumerate(world["psnr_db"].items()):
                _draw(axes, row, seconds, DASHES[number % len(DASHES)])
                cells = [_cell(seconds[second - 1]) for second in PRINTED if second <= len(seconds)]
                print(f"| {name}, {row} | " + " | ".join(cells) + " |")
            axes.set_title(f"{name}: {world['episodes']} episodes", loc="left")
            axes.set_xlabel("seconds after the context")
            axes.set_ylabel("PSNR (dB)")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, ncols=2)
        figure.savefig(out, transparent=True, metadata={"Date": None})


def _is_world(entry: Any) -> bool:
    return isinstance(entry, dict) and "psnr_db" in entry


def _cell(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _draw(axes: Any, row: str, seconds: list[dict[str, float]], dashes: str) -> None:
    middles, colour = [second + 0.5 for second in range(len(seconds))], COLOURS.get(row, "#fb8c00")
    axes.plot(middles, [one["mean"] for one in seconds], color=colour, linestyle=dashes, label=row)
    low, high = [one["low"] for one in seconds], [one["high"] for one in seconds]
    axes.fill_between(middles, low, high, color=colour, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
