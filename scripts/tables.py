"""Print evaluations as the Markdown tables of docs/results.md, so that no figure there is typed by hand.

python scripts/tables.py RUN/evaluation/metrics.json ...
"""

import sys
from pathlib import Path

from worldline.evaluation.result import Comparison, Evaluation, label_of, metrics_of
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import METRICS
from worldline.report.tables import INCOMPARABLE, facts_of, format_number, listed, tokenizer_of

SHOWN = (
    "psnr_db_last",
    "psnr_db_mean",
    "ssim_last",
    "lpips_last",
    "top500_ce_residual",
    "top500_coverage",
    "full_ce",
    "token_accuracy",
    "teacher_forced_ce",
)


def cell(value: Interval | None, unit: str) -> str:
    if value is None:
        return "-"
    low, high = (format_number(end, unit) for end in (value.low, value.high))
    return f"{format_number(value.mean, unit)} [{low}, {high}]"


def table(evaluation: Evaluation) -> str:
    metrics = [name for name in SHOWN if any(name in row.metrics for row in evaluation.rows)]
    heads = [f"{METRICS[name].label} ({METRICS[name].unit or '0..1'})" for name in metrics]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in listed(evaluation.rows):
        cells = [cell(row.metrics.get(name), METRICS[name].unit) for name in metrics]
        lines.append(f"| {label_of(row.id)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(comparison: Comparison) -> str:
    info = METRICS[comparison.metric]
    better, than = label_of(comparison.better), label_of(comparison.than)
    return f"| {better} minus {than} | {info.label} | {cell(comparison.difference, info.unit)} |"


def main(paths: list[Path]) -> None:
    evaluations = {path: Evaluation.load(path) for path in paths}
    scored = [e for e in evaluations.values() if any(METRICS[m].group == "token" for m in metrics_of(e.rows))]
    if len({evaluation.tokenizer for evaluation in scored}) > 1:
        print(f"{INCOMPARABLE}\n")
    for path, evaluation in evaluations.items():
        ran = evaluation.environment
        print(f"{path}, {facts_of(evaluation)}, {tokenizer_of(evaluation)}, {evaluation.seconds:.0f} s")
        print(f"commit {ran['commit']}, {ran['cpu']}, torch {ran['torch']}, settings {evaluation.settings}\n")
        print(table(evaluation))
        if evaluation.comparisons:
            print("\n| difference on the same clips | metric | mean [95 % interval] |\n|---|---|---|")
            print("\n".join(difference(comparison) for comparison in evaluation.comparisons))
        print()


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:] if not argument.endswith(".receipt.json")])
