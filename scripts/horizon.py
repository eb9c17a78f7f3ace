"""Plot and tabulate evaluations to a horizon, for docs/horizon.md, so that no figure there is made by hand.

python scripts/horizon.py OUT.svg RUN/evaluation_10s/metrics.json ...
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from plots import DASHES, GREY

from worldline.evaluation.result import Chart, Evaluation, Finding
from worldline.report.tables import format_interval

COLOURS = {
    "forecast": "#1e88e5",
    "copy-last": "#8a8f98",
    "the live twin": "#43a047",
    "each chunk from true frames": "#8e24aa",
    "reconstruction": "#00897b",
}
PRINTED = (0, 3, 9)
"""Stretches of the table: the first, fourth and tenth second."""


def main(out: Path, paths: list[Path]) -> None:
    """Draw PSNR and motion over time of each evaluation, and print a table and the sentence of each."""
    found = [(evaluation := Evaluation.load(path), drift_of(evaluation)) for path in paths]
    style = {"svg.hashsalt": "worldline", "svg.fonttype": "none", "font.size": 9}
    style |= {name: GREY for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    with matplotlib.rc_context(style):
        figure, grid = pyplot.subplots(
            2, len(found), figsize=(4.6 * len(found), 6), squeeze=False, layout="constrained"
        )
        for column, (evaluation, drift) in enumerate(found):
            charts = {chart.title: chart for chart in drift.charts}
            for axes, title in zip(grid[:, column], ("PSNR over time", "Motion over time"), strict=True):
                draw(axes, charts[title])
            grid[1, column].legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=7)
            data = evaluation.data
            grid[0, column].set_title(f"{evaluation.run}, {data.name}: {data.num_episodes} episodes", loc="left")
            print(f"\n{evaluation.run} on {data.name}, {data.num_clips} clips of {data.num_episodes} episodes")
            print(f"{drift.verdict}: {drift.sentence}\n")
            table(charts["PSNR over time"], drift)
        figure.savefig(out, transparent=True, metadata={"Date": None})


def drift_of(evaluation: Evaluation) -> Finding:
    """What an evaluation found about its horizon."""
    return next(finding for finding in evaluation.findings if finding.id == "drift")


def draw(axes: Axes, chart: Chart) -> None:
    for number, curve in enumerate(chart.curves):
        colour, dashes = COLOURS.get(curve.label, "#fb8c00"), DASHES[number % len(DASHES)]
        axes.plot(curve.x, [one.mean for one in curve.y], color=colour, linestyle=dashes, label=curve.label)
        low, high = [one.low for one in curve.y], [one.high for one in curve.y]
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.spines[["top", "right"]].set_visible(False)


def table(chart: Chart, drift: Finding) -> None:
    """PSNR in some seconds, and motion over all, as Markdown."""
    names = [line.label for line in drift.tables[1].lines]
    shown = [place for place in PRINTED if place < len(names)]
    print("| row | " + " | ".join(names[place] for place in shown) + " | motion |")
    print("|---" * (len(shown) + 2) + "|")
    motion = {line.label: line.values[-1] for line in drift.tables[0].lines}
    for curve in chart.curves:
        cells = [format_interval(curve.y[place], "dB") for place in shown]
        moved = motion[curve.label]
        print(
            f"| {curve.label} | " + " | ".join(cells) + f" | {'-' if moved is None else format_interval(moved, '')} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:] if not path.endswith(".receipt.json")])
