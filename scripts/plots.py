"""Plot evaluations for docs/results.md, so that no figure there is drawn by hand.

python scripts/plots.py OUT.svg RUN/evaluation/metrics.json ...

One line of pictures for each evaluation: every row's figure with its 95 % interval, and how it changes over the
predicted frames, where that was recorded. Colours are readable on a light page and on a dark one.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

from worldline.evaluation.result import Evaluation, Role, Row, label_of
from worldline.metrics.table import METRICS

GREY = "#8a8f98"
COLOURS: dict[Role, str] = {"model": "#1e88e5", "baseline": "#8a8f98", "ceiling": "#43a047", "ablation": "#fb8c00"}
DASHES = ("-", "--", ":", "-.")
SHOWN = ("psnr_db_last", "psnr_db_mean", "top500_ce_residual", "full_ce")
"""What is plotted of an evaluation: the first of these that it has."""


def main(out: Path, paths: list[Path]) -> None:
    """Write the plots of these metrics.json, one below the other."""
    evaluations = [Evaluation.load(path) for path in paths]
    style = {"svg.hashsalt": "worldline", "svg.fonttype": "none", "font.size": 9}
    style |= {name: GREY for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    with matplotlib.rc_context(style):
        heights = [max(2.8, 0.8 + 0.19 * len(_rows(evaluation)[1])) for evaluation in evaluations]  # no labels overlap
        size: Any = {"figsize": (13, sum(heights)), "height_ratios": heights}
        figure, grid = pyplot.subplots(len(paths), 2, **size, squeeze=False, layout="constrained")
        for evaluation, (left, right) in zip(evaluations, grid, strict=True):
            _intervals(left, evaluation)
            _curve(right, evaluation)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def _rows(evaluation: Evaluation) -> tuple[str, list[Row]]:
    """The metric that is plotted, and the rows that have it, from below."""
    metric = next(name for name in SHOWN if any(name in row.metrics for row in evaluation.rows))
    return metric, [row for row in evaluation.rows if metric in row.metrics][::-1]


def _intervals(axes: Axes, evaluation: Evaluation) -> None:
    metric, rows = _rows(evaluation)
    for place, row in enumerate(rows):
        found = row.metrics[metric]
        axes.plot([found.low, found.high], [place, place], color=COLOURS[row.role], linewidth=2)
        axes.plot(found.mean, place, "o", color=COLOURS[row.role], markersize=5)
    axes.set_yticks(range(len(rows)), [label_of(row.id) for row in rows])
    axes.set_xlabel(f"{METRICS[metric].label} ({METRICS[metric].unit or '0..1'})")
    data = evaluation.data
    axes.set_title(
        f"{data.name}, {evaluation.protocol}: {data.num_clips} clips of {data.num_episodes} episodes", loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: Axes, evaluation: Evaluation) -> None:
    if not evaluation.curves:
        axes.set_axis_off()
        return
    metric, curves = next(iter(evaluation.curves.items()))
    roles = {row.id: row.role for row in evaluation.rows}
    drawn: dict[Role, int] = {}
    for name, values in curves.items():
        frames, role = range(1, len(values) + 1), roles[name]
        dashes = DASHES[drawn.get(role, 0) % len(DASHES)]  # rows of one role differ by them
        drawn[role] = drawn.get(role, 0) + 1
        axes.plot(frames, [value.mean for value in values], color=COLOURS[role], linestyle=dashes, label=label_of(name))
        low, high = [value.low for value in values], [value.high for value in values]
        axes.fill_between(frames, low, high, color=COLOURS[role], alpha=0.15, linewidth=0)
    axes.set_xlabel("predicted frame")
    axes.set_ylabel(METRICS[metric].unit or METRICS[metric].label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[2:] if not argument.endswith(".receipt.json")]
    main(Path(sys.argv[1]), given)
