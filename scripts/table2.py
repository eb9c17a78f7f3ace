"""Print the evaluations of runs/table2.sh as one table with the columns of the report's table 2, in Markdown.

python scripts/table2.py runs/table2/sampling-tiny
"""

import sys
from pathlib import Path

from worldline.evaluation.result import Evaluation, label_of
from worldline.evaluation.rows import mean_id
from worldline.evaluation.sets import floors_of
from worldline.metrics.table import METRICS
from worldline.report.tables import facts_of, format_interval

COLUMNS = ("psnr_db_last", "ssim_last", "lpips_last", "fid", "fd_alex")
"""Those of the report, on the last frame, and ours that needs no further weights."""
BESIDE = ("copy_last", "reconstruction")
"""What a forecast has to beat, and what its tokenizer allows; neither has steps or samples."""
MADE = ("steps", "guidance", "num_samples")
"""Settings that tell the lines apart, in the order they are sorted by."""


def numbers(evaluation: Evaluation, id: str) -> list[str]:
    """A row of an evaluation in these columns."""
    row = next(row for row in evaluation.rows if row.id == id)
    values = {name: row.metrics.get(name) for name in COLUMNS}
    return ["-" if x is None else format_interval(x, METRICS[name].unit) for name, x in values.items()]


def forecast(evaluation: Evaluation) -> list[str]:
    """How the forecast of an evaluation was made, and its numbers."""
    made = evaluation.settings
    return [*(str(made[name]) for name in MADE), *numbers(evaluation, mean_id(int(made["num_samples"])))]


def main(folder: Path) -> None:
    evaluations = [Evaluation.load(path) for path in sorted(folder.glob("*/metrics.json"))]
    if not evaluations:
        raise SystemExit(f"{folder}: no evaluations; runs/table2.sh makes them")
    evaluations.sort(key=lambda one: [one.settings[name] for name in MADE])
    first = evaluations[0]
    commits, processors = ({one.environment[name] for one in evaluations} for name in ("commit", "cpu"))
    print(f"{facts_of(first)}\ncommit {', '.join(sorted(commits))}, {', '.join(sorted(processors))}\n")
    about = [METRICS[name] for name in COLUMNS]
    heads = [one.heading for one in about]
    print("| steps | guidance | samples | " + " | ".join(heads) + " |\n" + "|---" * (3 + len(heads)) + "|")
    lines = [forecast(evaluation) for evaluation in evaluations]
    for id in BESIDE:
        lines.append([label_of(id), "-", "-", *numbers(first, id)])
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    print()
    print("\n".join(floors_of(first.settings)))
    for name in ("ssim", "lpips", "fid", "fd_alex"):
        if name in first.not_computed:
            print(f"not computed: {label_of(name)}: {first.not_computed[name]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
