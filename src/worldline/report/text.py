"""Numbers as text, the same everywhere, and an evaluation as a table for a terminal."""

import math
from collections.abc import Sequence

from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Row, best_rows, label_of, metrics_of
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import METRICS, Metric

INCOMPARABLE = (
    "Costs of tokens do not compare here: the tokens are of different tokenizers or hysteresis, so what there is to "
    "predict is not the same."
)


def format_number(value: float, unit: str) -> str:
    """Write a number as in every table: dB with two decimals, all else with three."""
    return f"{value:.2f}" if unit == "dB" else f"{value:.3f}"


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


def judged_frames(protocol: str) -> str:
    """The name of an evaluation's frames: a tokenizer is evaluated on the frames it saw."""
    return "frames" if protocol == "tokenizer" else "future frames"


def tokenizer_of(evaluation: Evaluation) -> str:
    """Name the tokenizer of the scored tokens or latents, as every table does."""
    return "tokenizer not recorded" if evaluation.tokenizer is None else f"tokenizer {evaluation.tokenizer}"


def split_of(data: DataSummary) -> str:
    """Say whether the model was trained on the evaluated data, as every table does."""
    return {"held out": "held out", "training data": "TRAINING DATA"}.get(data.split, "not checked to be held out")


def text_table(evaluation: Evaluation, *, width: int = 110) -> str:
    """Lay out an evaluation: metrics down, forecasters across, as many side by side as `width` allows."""
    data, rows = evaluation.data, evaluation.rows
    lines = [
        f"{evaluation.protocol}: {data.num_clips} clips of {data.num_episodes} episodes of {data.name}, "
        f"{split_of(data)}, {data.horizon_frames} {judged_frames(evaluation.protocol)} at {data.fps:g} per second",
        tokenizer_of(evaluation),
        "mean [95 % interval over episodes]; * best mean",
    ]
    about = [METRICS[metric] for metric in metrics_of(rows)]
    heads = ["", *(f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric in about)]
    columns = [[label_of(row.id), *(_cell(row, metric, rows) for metric in about)] for row in rows]
    margin = max(map(len, heads))
    for block in _side_by_side(columns, width - margin):
        table = [(head, cells) for head, *cells in zip(heads, *block, strict=True) if {*map(str.strip, cells)} != {"-"}]
        lines += ["", *(f"{head:<{margin}}{''.join(cells)}".rstrip() for head, cells in table)]
    lines += ["", *(_sentence(comparison) for comparison in evaluation.comparisons)]
    lines += [f"not computed: {label_of(id)}: {why}" for id, why in evaluation.not_computed.items()]
    return "\n".join(lines).rstrip() + "\n"


def _cell(row: Row, metric: Metric, rows: Sequence[Row]) -> str:
    if metric.id not in row.metrics:
        return "- "
    return format_interval(row.metrics[metric.id], metric.unit) + ("*" if row in best_rows(rows, metric.id) else " ")


def _side_by_side(columns: list[list[str]], width: int) -> list[list[list[str]]]:
    """Columns in blocks no wider than `width`, each padded to one length."""
    blocks, used = [], width
    for column in columns:
        size = 2 + max(map(len, column))
        if used + size > width or not blocks:
            blocks.append([])
            used = 0
        blocks[-1].append([cell.rjust(size) for cell in column])
        used += size
    return blocks


def _sentence(comparison: Comparison) -> str:
    about, better, than = METRICS[comparison.metric], label_of(comparison.better), label_of(comparison.than)
    difference = f"{format_interval(comparison.difference, about.unit)} {about.unit}".rstrip()
    return f"{better} vs {than}: {comparison.verdict()} ({better} minus {than}, {about.label}: {difference})"
