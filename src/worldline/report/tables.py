"""Rows of evaluations as tables of a page: which rows stand together, which columns, what is best.

Knows evaluations, nothing of run folders or HTML.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worldline.evaluation.result import (
    METRIC_INFO,
    DataSummary,
    Evaluation,
    MetricInfo,
    Role,
    Row,
    best_rows,
    metrics_of,
)
from worldline.metrics.bootstrap import Interval
from worldline.report.text import judged_frames

HEADLINE_CODE_METRIC = "top500_ce_residual"
ORDER: tuple[Role, ...] = ("model", "baseline", "ablation", "ceiling")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table."""

    value: Interval
    unit: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """One forecaster of a table."""

    run: str
    name: str
    role: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of runs that were evaluated alike, so that their numbers may be compared."""

    protocol: str
    data: DataSummary
    columns: tuple[MetricInfo, ...]
    lines: tuple[Line, ...]

    @property
    def frames(self) -> str:
        """What the frames it is about are called."""
        return judged_frames(self.protocol)


def tables(evaluations: Mapping[str, Evaluation], group: Literal["headline", "code"]) -> list[Table]:
    """Tabulate the rows of runs (name -> evaluation), one table per protocol and data: only those compare.

    A row that several runs have to the last digit (a baseline, as a rule) is listed once.
    """
    alike: dict[tuple[str, DataSummary], list[tuple[str, Row]]] = {}
    for name, evaluation in evaluations.items():
        rows = alike.setdefault((evaluation.protocol, evaluation.data), [])
        rows += [(name, row) for row in evaluation.rows]
    found = [_table(protocol, data, rows, group) for (protocol, data), rows in alike.items()]
    return [table for table in found if table.lines]


def _table(protocol: str, data: DataSummary, owned: list[tuple[str, Row]], group: str) -> Table:
    owners: dict[str, list[str]] = {}
    distinct: dict[str, Row] = {}
    for run, row in owned:
        # `repr` and not the row itself: NaN is not equal to NaN.
        owners.setdefault(repr(row), []).append(run)
        distinct.setdefault(repr(row), row)
    rows = sorted(distinct.values(), key=lambda row: ORDER.index(row.role))
    metrics = [metric for metric in metrics_of(rows) if _belongs(metric, group)]
    best = {metric: best_rows(rows, metric) for metric in metrics}
    lines = [
        Line(
            run=_listed(owners[repr(row)]),
            name=row.name,
            role=row.role,
            cells=tuple(_cell(row, metric, best[metric]) for metric in metrics),
        )
        for row in rows
        if set(metrics) & set(row.metrics)
    ]
    columns = tuple(METRIC_INFO[metric] for metric in metrics)
    return Table(protocol=protocol, data=data, columns=columns, lines=tuple(lines))


def _listed(runs: list[str]) -> str:
    return ", ".join(runs) if len(runs) <= 3 else f"{len(runs)} runs"


def _belongs(metric: str, group: str) -> bool:
    if group == "code":
        return METRIC_INFO[metric].group == "code"
    return METRIC_INFO[metric].group == "image" or metric == HEADLINE_CODE_METRIC


def _cell(row: Row, metric: str, best: list[Row]) -> Cell | None:
    if metric not in row.metrics:
        return None
    return Cell(value=row.metrics[metric], unit=METRIC_INFO[metric].unit, best=any(row is one for one in best))
