"""What an evaluation found: rows of intervals, curves, comparisons, what was not computed, and where it ran.

The JSON on disk (`evaluation/metrics.json`) and its reading back. Knows nothing of how a number is computed
or printed; the meaning of each metric is written here once, in `METRIC_INFO`, for every table and page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError, with_config

from worldline.files import atomic
from worldline.metrics.bootstrap import Interval
from worldline.schema import DataError
from worldline.tokenizers.load import TokenizerIdentity

Role = Literal["model", "baseline", "ceiling", "ablation"]
"""`ceiling`: the best any forecaster of this kind could do (the tokenizer alone); `ablation`: the model with
a part taken away (say, its states shuffled)."""


Split = Literal["held out", "training data", "not checked"]
"""Whether the model was trained on the recordings it was judged on; `not checked` where the run does not tell."""


@dataclass(frozen=True)
class MetricInfo:
    """How to print a metric and what it means."""

    label: str
    unit: str
    """`dB`, `nats`, `share` (0..1) or empty."""
    higher_is_better: bool
    group: Literal["image", "code"]
    """Computed on frames, or on the probabilities of tokens."""
    meaning: str


METRIC_INFO: dict[str, MetricInfo] = {
    "psnr_db": MetricInfo("PSNR", "dB", True, "image", "Peak signal-to-noise ratio of each predicted frame."),
    "psnr_db_last": MetricInfo(
        "PSNR, last frame",
        "dB",
        True,
        "image",
        "PSNR of the last predicted frame, then the mean over clips in dB.",
    ),
    "psnr_db_mean": MetricInfo(
        "PSNR, all frames",
        "dB",
        True,
        "image",
        "PSNR of every predicted frame, then the mean over frames and clips.",
    ),
    "ssim": MetricInfo("SSIM", "", True, "image", "Structural similarity of each predicted frame."),
    "ssim_last": MetricInfo("SSIM, last frame", "", True, "image", "SSIM of the last predicted frame."),
    "ssim_mean": MetricInfo("SSIM, all frames", "", True, "image", "SSIM averaged over every predicted frame."),
    "roundtrip_psnr_db": MetricInfo(
        "PSNR, round trip",
        "dB",
        True,
        "image",
        "The real frames through the tokenizer and back: a ceiling, no forecast.",
    ),
    "top500_ce_residual": MetricInfo(
        "Top-500 CE (residual)",
        "nats",
        False,
        "code",
        "Cost of a true token when the 500 best keep their probability and the others share the rest evenly. "
        "Our definition; the challenge's scorer is not public, so it is no leaderboard number.",
    ),
    "top500_ce_floor": MetricInfo(
        "Top-500 CE (floor)",
        "nats",
        False,
        "code",
        "Cost when the 500 best are renormalised and a miss costs a fixed 13.8 nats (probability 1e-6).",
    ),
    "top500_ce_hits_only": MetricInfo(
        "Top-500 CE (hits only)",
        "nats",
        False,
        "code",
        "The same over hits alone. A diagnostic: missing the hard tokens lowers it.",
    ),
    "top500_coverage": MetricInfo(
        "Top-500 coverage", "share", True, "code", "Share of true tokens that are among the 500 best."
    ),
    "full_ce": MetricInfo("Cross-entropy", "nats", False, "code", "Cost of a true token over the whole vocabulary."),
    "token_accuracy": MetricInfo(
        "Accuracy", "share", True, "code", "Share of tokens whose best guess is the true one."
    ),
    "teacher_forced_ce": MetricInfo(
        "Cross-entropy, teacher-forced",
        "nats",
        False,
        "code",
        "Each grid predicted from the true grids before it: an optimistic bound, not a forecast.",
    ),
    "teacher_forced_top500_ce": MetricInfo(
        "Top-500 CE (residual), teacher-forced", "nats", False, "code", "The same bound for the top-500 cost."
    ),
    "teacher_forced_accuracy": MetricInfo(
        "Accuracy, teacher-forced", "share", True, "code", "The same bound for the accuracy."
    ),
}
"""Every metric there is. `_last` and `_mean` say over which predicted frames; curves use the bare name."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was evaluated on."""

    name: str
    """Last part of the data's path."""
    kind: str
    num_clips: int
    num_episodes: int
    image_size: tuple[int, int] | None
    """Height and width in pixels; None where there are tokens only."""
    horizon_frames: int
    """Future frames that are predicted."""
    fps: float
    split: Split = "not checked"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One forecaster and its numbers, keyed as in `METRIC_INFO`."""

    name: str
    role: Role
    metrics: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim that one row beats another, and the paired difference that decides it."""

    name: str
    metric: str
    better: str
    """Row claimed to be better."""
    than: str
    """Row it is compared with."""
    difference: Interval
    """Mean of `better` minus `than` on the same clips, in the metric's unit; negative is good where lower
    is better."""

    def verdict(self) -> Literal["yes", "no", "undecided"]:
        """Whether the whole interval is on the claimed side of zero, on the other, or on both."""
        sign = 1 if METRIC_INFO[self.metric].higher_is_better else -1
        ends = sorted((sign * self.difference.low, sign * self.difference.high))
        if ends[0] > 0:
            return "yes"
        return "no" if ends[1] < 0 else "undecided"


@with_config(extra="forbid")
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything an evaluation found. A metric is either in a row or in `not_computed` with the reason."""

    protocol: str
    run: str
    data: DataSummary
    rows: tuple[Row, ...]
    curves: dict[str, dict[str, list[Interval]]]
    """Metric (say `psnr_db`) -> row name -> one interval per future frame."""
    comparisons: tuple[Comparison, ...]
    not_computed: dict[str, str]
    settings: dict[str, str | int | float | bool]
    environment: dict[str, str]
    seconds: float
    tokenizer: TokenizerIdentity | None = None
    """Whose tokens or latents were scored; None where that is not known. Costs of tokens compare within one only."""

    def save(self, path: Path) -> None:
        """Write JSON atomically, making the folder. NaN becomes null.

        Raises:
            ValueError: a metric that `METRIC_INFO` lacks, a name used twice, a curve or comparison of no row.
        """
        if problem := _inconsistency(self):
            raise ValueError(problem)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(TypeAdapter(Evaluation).dump_json(self, indent=2) + b"\n")

    @staticmethod
    def load(path: Path) -> "Evaluation":
        """Read what `save` wrote. Raises `DataError` where the file is absent, damaged or of another kind."""
        try:
            evaluation = TypeAdapter(Evaluation).validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataError(path, expected="an evaluation", found="no file", fix="Evaluate the run first.") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the beginning"
            raise _damaged(path, f"{first['msg']} at {place} (problem 1 of {error.error_count()})") from error
        if problem := _inconsistency(evaluation):
            raise _damaged(path, problem)
        return evaluation


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """List the metrics that any of the rows has, in the order of `METRIC_INFO`."""
    return [metric for metric in METRIC_INFO if any(metric in row.metrics for row in rows)]


def best_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """Find the rows with the best mean. Ceilings do not compete; a single contender is best of nothing."""
    contenders = [row for row in rows if metric in row.metrics and row.role != "ceiling"]
    if len(contenders) < 2:
        return []
    means = [row.metrics[metric].mean for row in contenders]
    best = max(means) if METRIC_INFO[metric].higher_is_better else min(means)
    return [row for row, mean in zip(contenders, means, strict=True) if mean == best]


def _inconsistency(evaluation: Evaluation) -> str | None:
    names = {row.name for row in evaluation.rows}
    used = {comparison.metric for comparison in evaluation.comparisons} | set(evaluation.curves)
    used |= {metric for row in evaluation.rows for metric in row.metrics}
    mentioned = {name for curve in evaluation.curves.values() for name in curve}
    mentioned |= {name for c in evaluation.comparisons for name in (c.better, c.than)}
    if len(names) < len(evaluation.rows):
        return "two rows of the same name"
    if unknown := sorted(used - set(METRIC_INFO)):
        return f"unknown metrics {', '.join(unknown)}"
    if absent := sorted(mentioned - names):
        return f"curves or comparisons of rows that are not there: {', '.join(absent)}"
    return None


def _damaged(path: Path, found: str) -> DataError:
    return DataError(path, expected="an evaluation as worldline writes it", found=found, fix="Evaluate the run again.")
