"""Compare two ways that were each trained from several seeds: paired means over seeds and clips, and each seed's own.

python scripts/over_seeds.py A_SEED_0 A_SEED_1 --minus B_SEED_0 B_SEED_1 [--metric full_ce token_accuracy] \
    [--row conditional_mean_4] [--minus-row mean_20] > table.md

Each is an evaluated run, or the folder of an evaluation, as of `worldline compare`; seeds in the same order on both
sides. Compared are their forecasts, or the rows that are named. Intervals are over episodes (95 %), of the mean over
these seeds: they know nothing of other seeds. That is what the values of each seed are for, which stand in brackets.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from worldline.evaluation.compare import Scored, load_scored
from worldline.evaluation.result import label_of
from worldline.metrics.bootstrap import Interval, interval
from worldline.metrics.table import METRICS
from worldline.schema import UsageError

FIGURES = ("full_ce", "top500_ce_residual", "token_accuracy", "top500_coverage", "psnr_db_last", "psnr_db_mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--minus", nargs="+", required=True)
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=None, metavar="ID")
    parser.add_argument("--row", metavar="ID", help="of the first runs; their forecast if not given")
    parser.add_argument("--minus-row", metavar="ID", help="of the others")
    args = parser.parse_args()
    if len(args.runs) != len(args.minus):
        parser.error(f"{len(args.runs)} runs and {len(args.minus)} to compare them with: give one of each seed")
    try:
        ours, theirs = ([load_scored(run) for run in runs] for runs in (args.runs, args.minus))
        print(table(ours, theirs, args.metric, rows=(args.row, args.minus_row)))
    except UsageError as error:
        raise SystemExit(str(error)) from None


def table(
    ours: Sequence[Scored],
    theirs: Sequence[Scored],
    metrics: Sequence[str] | None = None,
    *,
    rows: tuple[str | None, str | None] = (None, None),
) -> str:
    """Three rows of Markdown: both ways, and what the first has more. Without `metrics`, the FIGURES that are there.

    `rows` are those of the evaluations that are compared, ours and theirs; None is the forecast.
    """
    first = ours[0]
    names = metrics or [name for name in FIGURES if first.numbers(first.row(rows[0]).id, name) is not None]
    lines = [["", *(f"{METRICS[name].label} ({METRICS[name].unit})" for name in names)], ["---"] * (1 + len(names))]
    both = [
        [each_seed(first, runs, name, row) for name in names] for runs, row in zip((ours, theirs), rows, strict=True)
    ]
    for runs, row, values in zip((ours, theirs), rows, both, strict=True):
        name = runs[0].name if row is None else f"{runs[0].name}, {label_of(row)}"
        lines.append([name, *(with_seeds(first, each) for each in values)])
    pairs = [one - other for one, other in zip(*both, strict=True)]
    lines.append(["difference", *(with_seeds(first, pair) for pair in pairs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def each_seed(first: Scored, runs: Sequence[Scored], metric: str, row: str | None = None) -> Tensor:
    """Numbers (seeds, clips) of the clips of the first run. Raises `UsageError` for other clips or unknown numbers."""
    found = []
    for run in runs:
        of_clips = run.numbers(run.row(row).id, metric)
        if of_clips is None:
            raise UsageError(f"{run.name} has no {metric} of each clip")
        if run.clips.keys() != first.clips.keys():
            raise UsageError(f"{run.name} was evaluated on other clips than {first.name}")
        found.append(of_clips[[run.clips[clip] for clip in first.clips]])
    return torch.stack(found)


def over_episodes(first: Scored, values: Tensor) -> Interval:
    """The mean of one number for each clip of the first run, and its interval over episodes."""
    names = sorted({clip[0] for clip in first.clips})
    episodes = torch.tensor([names.index(clip[0]) for clip in first.clips])
    known = ~values.isnan()
    return interval(values[known], episodes[known])


def said(found: Interval) -> str:
    digits = 3 if abs(found.mean) < 1 else 2
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def with_seeds(first: Scored, values: Tensor) -> str:
    """The mean over seeds with its interval, and the mean of each seed where there are several."""
    each = [over_episodes(first, of_seed).mean for of_seed in values]
    return said(over_episodes(first, values.mean(dim=0))) + (
        f" ({', '.join(f'{mean:.3f}' for mean in each)})" if len(each) > 1 else ""
    )


if __name__ == "__main__":
    main()
