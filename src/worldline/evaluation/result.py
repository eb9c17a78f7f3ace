"""The result of an evaluation: rows of intervals, curves, comparisons, what was not computed, and where it ran.

The JSON on disk (`evaluation/metrics.json`) and its reading back. Rows and metrics have ids, which stay as they are;
what people read is looked up in their tables (`label_of`, `worldline.metrics.table.METRICS`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

import worldline.evaluation.conditions  # noqa: F401 - rows whose labels are looked up here
from worldline.evaluation.rows import Role, Setting, entry_of
from worldline.families.tokenizers import TokenizerIdentity
from worldline.files import atomic, read_json
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import METRICS
from worldline.rundir import from_json
from worldline.schema import DataError

Split = Literal["held out", "training data", "not checked"]
"""Whether the model was trained on the evaluated recordings; `not checked` if the run does not record it."""


def label_of(id: str) -> str:
    """The label of a row or a metric; an unknown id is its own label."""
    entry = METRICS.get(id) or entry_of(id)
    return id if entry is None else entry.label


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The evaluated data."""

    name: str
    """Last part of the data's path, of each of several data sets."""
    kind: str
    num_clips: int
    num_episodes: int
    """Recordings: pieces of one (start offsets) are one."""
    image_size: tuple[int, int] | None
    """Height and width in pixels; None where there are tokens only."""
    horizon_frames: int
    """Future frames that are predicted."""
    fps: float
    split: Split = "not checked"
    times: tuple[int, ...] = ()
    """How many frames after the context each predicted frame is; empty in older evaluations, where it was not kept."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One forecaster and its numbers, by the id of the metric."""

    id: str
    role: Role
    metrics: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim that one row beats another, and the paired difference that decides it."""

    metric: str
    better: str
    """Id of the row claimed to be better."""
    than: str
    """Id of the row it is compared with."""
    difference: Interval
    """Mean of `better` minus `than` on the same clips, in the metric's unit; negative is good where lower
    is better."""

    def verdict(self) -> Literal["yes", "no", "undecided"]:
        """Whether the whole interval is on the claimed side of zero, on the other, or on both."""
        sign = 1 if METRICS[self.metric].higher_is_better else -1
        low, high = sorted((sign * self.difference.low, sign * self.difference.high))
        return "yes" if low > 0 else "no" if high < 0 else "undecided"


@dataclass(frozen=True)
class Column:
    """A column of a finding's table."""

    label: str
    unit: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a finding's table; None where there is no such number."""

    label: str
    values: tuple[Interval | None, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers of a finding. Raises `ValueError` for a line of other length."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        if any(len(line.values) != len(self.columns) for line in self.lines):
            raise ValueError(f"{self.title}: every line has a value, or None, for each of {len(self.columns)} columns")


@dataclass(frozen=True)
class Curve:
    """One line of a chart: an interval at each place."""

    label: str
    x: tuple[float, ...]
    y: tuple[Interval, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one axis."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a study found: a verdict and a sentence first, then the numbers they stand on."""

    id: str
    title: str
    verdict: str
    """One or two plain words."""
    sentence: str
    """One plain sentence, which is what most people read."""
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    """What to know to judge the numbers."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The complete result of an evaluation. A metric is either in a row or in `not_computed` with the reason.

    Raises:
        ValueError: a metric that `METRICS` lacks, an id used twice, a curve or comparison of no row.
    """

    protocol: str
    run: str
    data: DataSummary
    rows: tuple[Row, ...]
    curves: dict[str, dict[str, list[Interval]]]
    """Metric (say `psnr_db`) -> id of the row -> one interval per future frame."""
    comparisons: tuple[Comparison, ...]
    not_computed: dict[str, str]
    """Id of a metric, a row or a study -> why."""
    settings: dict[str, Setting]
    environment: dict[str, str]
    seconds: float
    tokenizer: TokenizerIdentity | None = None
    """Tokenizer of the scored tokens or latents; None if unknown. Token costs compare only within one tokenizer."""
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        ids = {row.id for row in self.rows}
        used = {*self.curves, *(claim.metric for claim in self.comparisons)}.union(*(row.metrics for row in self.rows))
        mentioned = {id for claim in self.comparisons for id in (claim.better, claim.than)}.union(*self.curves.values())
        if len(ids) < len(self.rows):
            raise ValueError("two rows of the same id")
        if unknown := sorted(used - set(METRICS)):
            raise ValueError(f"unknown metrics {', '.join(unknown)}")
        if absent := sorted(mentioned - ids):
            raise ValueError(f"curves or comparisons of rows that are not there: {', '.join(absent)}")

    def save(self, path: Path) -> None:
        """Write JSON atomically, making the folder. NaN becomes null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(TypeAdapter(Evaluation).dump_json(self, indent=2) + b"\n")

    @staticmethod
    def load(path: Path) -> "Evaluation":
        """Read what `save` wrote. Raises `DataError` where the file is absent, damaged or of another kind."""
        if not path.exists():
            raise DataError(path, expected="an evaluation", found="no file", fix="Evaluate the run first.")
        return from_json(Evaluation, read_json(path), path)


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """List the metrics that any of the rows has, in the order of `METRICS`."""
    return [metric for metric in METRICS if any(metric in row.metrics for row in rows)]


def best_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """Find the rows with the best mean. Ceilings do not compete; a single contender is best of nothing, and where there
    is a right amount (`Metric.target`), none is.
    """
    contenders = [row for row in rows if metric in row.metrics and row.role != "ceiling"]
    if len(contenders) < 2 or METRICS[metric].target is not None:
        return []
    means = [row.metrics[metric].mean for row in contenders]
    best = max(means) if METRICS[metric].higher_is_better else min(means)
    return [row for row, mean in zip(contenders, means, strict=True) if mean == best]
