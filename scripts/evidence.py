"""Print what evaluations found, side by side, as the Markdown of docs/evidence.md, so that no figure there is typed.

python scripts/evidence.py docs/results/*.json

First a table of what people look for (LPIPS beside PSNR, motion, state error), then for each study the verdict and the
sentence of every evaluation, and what was not computed.
"""

import sys
from pathlib import Path

from tables import cell

from worldline.evaluation import studies  # noqa: F401 - they are in their table then
from worldline.evaluation.result import Evaluation, label_of
from worldline.evaluation.study import STUDIES
from worldline.metrics.table import METRICS

ROWS = ("forecast", "shuffled_states", "frozen_states", "unconditional", "copy_last", "reconstruction")
"""`forecast` stands for the first row of an evaluation, whatever its id."""
SHOWN = ("psnr_db_last", "psnr_db_mean", "lpips_last", "lpips_mean", "motion", "state_error_last", "fd_alex")


def main(paths: list[Path]) -> None:
    evaluations = {path.stem: Evaluation.load(path) for path in paths}
    print(numbers(evaluations))
    for study in STUDIES.values():
        print(f"\n## {study.title}\n")
        print(verdicts(study.id, evaluations))


def numbers(evaluations: dict[str, Evaluation]) -> str:
    """A line for each of the rows that people look for, of every evaluation."""
    metrics = [one for one in SHOWN if any(one in row.metrics for e in evaluations.values() for row in e.rows)]
    heads = [METRICS[one].heading for one in metrics]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, evaluation in evaluations.items():
        found = {"forecast": evaluation.rows[0]} | {row.id: row for row in evaluation.rows}
        for id in ROWS:
            if id in found:
                row = found[id]
                cells = [cell(row.metrics.get(one), METRICS[one].unit) for one in metrics]
                lines.append(f"| {name}, {label_of(row.id)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(id: str, evaluations: dict[str, Evaluation]) -> str:
    """What a study says of every evaluation."""
    lines = ["| | verdict | |", "|---|---|---|"]
    for name, evaluation in evaluations.items():
        finding = next((one for one in evaluation.findings if one.id == id), None)
        if finding is not None:
            lines.append(f"| {name} | **{finding.verdict}** | {finding.sentence} |")
        elif id in evaluation.not_computed:
            lines.append(f"| {name} | not computed | {evaluation.not_computed[id]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:] if not path.endswith(".receipt.json")])
