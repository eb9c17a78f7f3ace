"""Numbers as text, the same everywhere; rows of evaluations as tables, of one for a terminal, of several for a page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from worldline.evaluation.result import Evaluation, Role, Row, best_rows, label_of, metrics_of
from worldline.evaluation.result import Table as FindingTable
from worldline.evaluation.rows import entry_of
from worldline.evaluation.sets import floors_of
from worldline.metrics.bootstrap import Interval
from worldline.metrics.networks import WEIGHTS
from worldline.metrics.table import METRICS, Metric, headed

HEADLINE_TOKEN_METRIC = "top500_ce_residual"
ORDER: tuple[Role, ...] = ("model", "baseline", "ablation", "ceiling")
INCOMPARABLE = (
    "Costs of tokens do not compare here: the tokens are of different tokenizers or hysteresis, so what there is to "
    "predict is not the same."
)


def format_number(value: float, unit: str) -> str:
    """Write a number as in every table: dB with two decimals, per cent with one, all else with three."""
    digits = {"dB": 2, "%": 1}.get(unit, 3)
    return f"{value:.{digits}f}"


def format_interval(value: Interval, unit: str) -> str:
    """Write `mean [low, high]`; with one episode there is no interval, and the text says so."""
    mean, low, high = (format_number(number, unit) for number in (value.mean, value.low, value.high))
    return f"{mean} [one episode]" if math.isnan(value.low) else f"{mean} [{low}, {high}]"


def duration(seconds: float) -> str:
    """Write a time span with its two leading units: `1 h 12 min`, `3 min 20 s`, `4.2 s`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def facts_of(evaluation: Evaluation) -> str:
    """Say what was evaluated, as every table does, and whether the model was trained on it."""
    data = evaluation.data
    split = {"held out": "held out", "training data": "TRAINING DATA"}.get(data.split, "not checked to be held out")
    clips = f"{data.num_clips} clips of {data.num_episodes} episode{'s' * (data.num_episodes != 1)} of {data.name}"
    # A tokenizer is evaluated on the frames it saw.
    frames = f"{data.horizon_frames} {'frames' if evaluation.protocol == 'tokenizer' else 'future frames'}"
    return f"{evaluation.protocol}: {clips}, {split}, {frames} at {data.fps:g} per second"


def tokenizer_of(evaluation: Evaluation) -> str:
    """Name the tokenizer of the scored tokens or latents, as every table does."""
    return "tokenizer not recorded" if evaluation.tokenizer is None else f"tokenizer {evaluation.tokenizer}"


def listed(rows: Sequence[Row]) -> list[Row]:
    """The rows of tables; those that only matter to a study are in its own."""
    return [row for row in rows if (entry := entry_of(row.id)) is None or entry.study is None]


def text_table(evaluation: Evaluation, *, width: int = 110) -> str:
    """Lay out an evaluation: metrics down, forecasters across, as many side by side as `width` allows."""
    rows, lines = listed(evaluation.rows), [facts_of(evaluation), tokenizer_of(evaluation)]
    lines.append("mean [95 % interval over episodes]; * best mean")
    about = [METRICS[metric] for metric in metrics_of(rows)]
    best = {metric.id: best_rows(rows, metric.id) for metric in about}
    heads = ["", *(metric.heading for metric in about)]
    columns = [[label_of(row.id), *(_cell(row, metric, row in best[metric.id]) for metric in about)] for row in rows]
    margin = max(map(len, heads))
    size = 2 + max((len(cell) for column in columns for cell in column), default=0)
    each = max(1, (width - margin) // size)
    for start in range(0, len(columns), each):
        lines.append("")
        for head, *cells in zip(heads, *columns[start : start + each], strict=True):
            if set(cells) != {"- "}:
                lines.append(f"{head:<{margin}}{''.join(cell.rjust(size) for cell in cells)}".rstrip())
    lines.append("")
    for claim in evaluation.comparisons:
        metric, better, than = METRICS[claim.metric], label_of(claim.better), label_of(claim.than)
        difference = f"{format_interval(claim.difference, metric.unit)} {metric.unit}".rstrip()
        lines.append(f"{better} vs {than}: {claim.verdict()} ({better} minus {than}, {metric.label}: {difference})")
    lines += floors_of(evaluation.settings)
    lines += [f"not computed: {label_of(id)}: {why}" for id, why in evaluation.not_computed.items()]
    for finding in evaluation.findings:
        lines += ["", f"{finding.title} {finding.verdict}. {finding.sentence}"]
        for table in finding.tables:
            lines += ["", *_text_of(table)]
    return "\n".join(lines).rstrip() + "\n"


def _text_of(table: FindingTable) -> list[str]:
    """A finding's table: a line of heads, then one for each of its lines."""
    heads = [headed(column.label, column.unit) for column in table.columns]
    body = [
        [
            "-" if value is None else format_interval(value, column.unit)
            for value, column in zip(line.values, table.columns, strict=True)
        ]
        for line in table.lines
    ]
    labels = (table.title, *(line.label for line in table.lines))
    return laid([[label, *cells] for label, cells in zip(labels, [heads, *body], strict=True)])


def laid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _cell(row: Row, metric: Metric, best: bool) -> str:
    value = row.metrics.get(metric.id)
    return "- " if value is None else format_interval(value, metric.unit) + ("*" if best else " ")


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
    """Why a column that one would look for is not there, and what to know of one that is."""


def tables(evaluations: Mapping[str, Evaluation], group: Literal["headline", "token"]) -> list[Table]:
    """Tabulate the rows of runs (name -> evaluation), one table per protocol and data: only those compare.

    Costs of tokens compare only where one tokenizer made them: each has a `token` table, and a headline of several
    leaves them out. A row that several runs have to the last digit (a baseline, as a rule) is listed once.
    """
    alike: dict[object, dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        key = (evaluation.protocol, evaluation.data, evaluation.tokenizer if group == "token" else None)
        alike.setdefault(key, {})[name] = evaluation
    return [table for runs in alike.values() if (table := _table(runs, group)).lines]


def _table(runs: Mapping[str, Evaluation], group: str) -> Table:
    found: dict[str, tuple[Row, list[str]]] = {}
    for run, evaluation in runs.items():
        for row in listed(evaluation.rows):
            # `repr` and not the row itself: NaN is not equal to NaN.
            found.setdefault(repr(row), (row, []))[1].append(run)
    owned = sorted(found.values(), key=lambda one: ORDER.index(one[0].role))
    rows, made = [row for row, _ in owned], {name: tokenizer_of(evaluation) for name, evaluation in runs.items()}
    first = next(iter(runs.values()))
    kinds = ("image", "video", "set") if group == "headline" else (group,)
    mixed = len({evaluation.tokenizer for evaluation in runs.values()}) > 1
    belonging = [one for one in metrics_of(rows) if one == HEADLINE_TOKEN_METRIC or METRICS[one].group in kinds]
    metrics = [metric for metric in belonging if not (mixed and METRICS[metric].group == "token")]
    other = {metric for metric in metrics if METRICS[metric].learned and len(_weights(runs.values(), metric)) > 1}
    metrics = [metric for metric in metrics if metric not in other]
    notes = [INCOMPARABLE] if len(metrics) + len(other) < len(belonging) else []
    if other:
        names = " and ".join(sorted({METRICS[metric].label.partition(",")[0] for metric in other}))
        notes.append(f"{names} does not compare here: it was measured with different weights.")
    return Table(
        of=first,
        tokenizers="; ".join(f"{name}: {text}" for name, text in made.items()) if mixed else next(iter(made.values())),
        columns=tuple(METRICS[metric] for metric in metrics),
        lines=tuple(
            (", ".join(names) if len(names) <= 3 else f"{len(names)} runs", row)
            for row, names in owned
            if set(metrics) & set(row.metrics)
        ),
        best={metric: best_rows(rows, metric) for metric in metrics},
        note=" ".join([*notes, *(f"{floor}." for floor in floors_of(first.settings, metrics))]),
    )


def _weights(evaluations: Iterable[Evaluation], metric: str) -> set[object]:
    """The different weights that a metric was measured with."""
    name = metric.removesuffix("_last").removesuffix("_mean") + WEIGHTS
    return {one.settings.get(name) for one in evaluations if any(metric in row.metrics for row in one.rows)}
