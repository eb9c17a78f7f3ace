"""Rows of evaluations as tables of a page: which rows stand together, which columns, what is best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worldline.evaluation.result import Evaluation, Role, Row, best_rows, metrics_of
from worldline.metrics.table import METRICS, Metric
from worldline.report.text import INCOMPARABLE, tokenizer_of

HEADLINE_TOKEN_METRIC = "top500_ce_residual"
ORDER: tuple[Role, ...] = ("model", "baseline", "ablation", "ceiling")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of runs with the same kind of evaluation, so that their numbers may be compared."""

    of: Evaluation
    """One of those evaluations: protocol and data are the same in all."""
    tokenizers: str
    """Whose tokens or latents were scored; of several, which run's."""
    columns: tuple[Metric, ...]
    lines: tuple[tuple[str, Row], ...]
    """Runs that have a row, and the row."""
    best: dict[str, list[Row]]
    """By the id of the metric."""
    note: str
    """Why a column that one would look for is not there."""


def tables(evaluations: Mapping[str, Evaluation], group: Literal["headline", "token"]) -> list[Table]:
    """Tabulate the rows of runs (name -> evaluation), one table per protocol and data: only those compare.

    Costs of tokens compare only where one tokenizer made them: each has a `token` table of its own, and a headline of
    several leaves them out. A row that several runs have to the last digit (a baseline, as a rule) is listed once.
    """
    alike: dict[object, dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        key = (evaluation.protocol, evaluation.data, evaluation.tokenizer if group == "token" else None)
        alike.setdefault(key, {})[name] = evaluation
    found = [_table(runs, group) for runs in alike.values()]
    return [table for table in found if table.lines]


def _table(runs: Mapping[str, Evaluation], group: str) -> Table:
    mixed = len({evaluation.tokenizer for evaluation in runs.values()}) > 1
    made = {name: tokenizer_of(evaluation) for name, evaluation in runs.items()}
    owners: dict[str, list[str]] = {}
    distinct: dict[str, Row] = {}
    for run, evaluation in runs.items():
        for row in evaluation.rows:
            # `repr` and not the row itself: NaN is not equal to NaN.
            owners.setdefault(repr(row), []).append(run)
            distinct.setdefault(repr(row), row)
    rows = sorted(distinct.values(), key=lambda row: ORDER.index(row.role))
    headline = {HEADLINE_TOKEN_METRIC} if group == "headline" else set()
    kind = "image" if group == "headline" else group
    belonging = [metric for metric in metrics_of(rows) if METRICS[metric].group == kind or metric in headline]
    metrics = [metric for metric in belonging if not (mixed and METRICS[metric].group == "token")]
    listed = {key: ", ".join(runs) if len(runs) <= 3 else f"{len(runs)} runs" for key, runs in owners.items()}
    return Table(
        of=next(iter(runs.values())),
        tokenizers="; ".join(f"{name}: {text}" for name, text in made.items()) if mixed else next(iter(made.values())),
        columns=tuple(METRICS[metric] for metric in metrics),
        lines=tuple((listed[repr(row)], row) for row in rows if set(metrics) & set(row.metrics)),
        best={metric: best_rows(rows, metric) for metric in metrics},
        note=INCOMPARABLE if metrics != belonging else "",
    )
