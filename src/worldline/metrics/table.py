"""Every metric there is: one entry each, with its id, what people read, and the function that computes it.

To add one, `register` an entry: rows, metrics.json, tables, plots and the report follow. Ids stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from worldline.metrics import image, tokens
from worldline.metrics.tokens import Guesses


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of each clip, and how to print it."""

    id: str
    label: str
    unit: str = ""
    """`dB`, `nats`, `share` (0..1) or empty."""
    higher_is_better: bool = True
    group: Literal["image", "token"]
    """Computed on frames, or on the probabilities of tokens."""
    meaning: str
    measure: Callable[..., Tensor] | None = None
    """`image`: of predicted and true frames `b f 3 h w` one number per frame `b f`, which makes a curve `ID` and the
    metrics `ID_last` and `ID_mean`; `token`: of `Guesses` one number per token. None of those two metrics."""
    bound: str | None = None
    """Id of the same cost where each grid is predicted from the true grids before it, for which no forecast is read."""
    sparse: bool = False
    """NaN of a clip that has nothing to measure (say, no hit): such a clip is left out."""


METRICS: dict[str, Metric] = {}
"""By id, in the order of tables."""


def register(metric: Metric) -> None:
    """Add an entry, and of an image metric those of its last frame and its mean, of a token metric its bound."""
    METRICS[metric.id] = metric
    if metric.bound:
        meaning = f"{metric.label} where each grid is predicted from the true ones before it: a bound, no forecast."
        METRICS[metric.bound] = replace(
            metric, id=metric.bound, label=f"{metric.label}, teacher-forced", meaning=meaning, measure=None, bound=None
        )
    if metric.group == "image":
        for part, label, meaning in (
            ("last", "last frame", "Of the last predicted frame, then the mean over clips."),
            ("mean", "all frames", "Of every predicted frame, then the mean over frames and clips."),
        ):
            entry = replace(metric, id=f"{metric.id}_{part}", label=f"{metric.label}, {label}", measure=None)
            METRICS[entry.id] = replace(entry, meaning=f"{metric.meaning} {meaning}")


def token_costs(guesses: Guesses) -> dict[str, Float32[Tensor, " n"]]:
    """Every metric of tokens, by id: one number per true token."""
    measured = {metric.id: metric.measure for metric in METRICS.values() if metric.group == "token"}
    return {name: measure(guesses) for name, measure in measured.items() if measure is not None}


def grid_costs(logits: Float[Tensor, "h w v"], true: Int64[Tensor, "h w"]) -> dict[str, Float32[Tensor, ""]]:
    """Every metric of tokens, by id: the mean over the true tokens of one grid under its logits."""
    costs = token_costs(tokens.guesses_of(logits.flatten(0, 1), true.flatten().to(logits.device)))
    return {name: tokens.per_clip(cost, 1)[0] for name, cost in costs.items()}


def _absent(reason: str) -> Callable[..., Tensor]:
    def measure(*_: object) -> Tensor:
        raise image.MetricUnavailable(reason)

    return measure


for _metric in (
    Metric(
        id="psnr_db",
        label="PSNR",
        unit="dB",
        group="image",
        meaning="Peak signal-to-noise ratio, the mean taken in dB.",
        measure=image.psnr,
    ),
    Metric(id="ssim", label="SSIM", group="image", meaning="Structural similarity.", measure=image.ssim),
    Metric(
        id="lpips",
        label="LPIPS",
        higher_is_better=False,
        group="image",
        meaning="Perceptual distance.",
        measure=_absent("needs learned weights that are not part of worldline"),
    ),
    Metric(
        id="fid",
        label="FID",
        higher_is_better=False,
        group="image",
        meaning="Distance of distributions of Inception features.",
        measure=_absent("needs the standard Inception weights, and far more images than an evaluation has"),
    ),
    Metric(
        id="top500_ce_residual",
        label="Top-500 CE (residual)",
        unit="nats",
        higher_is_better=False,
        group="token",
        meaning="Cost of a true token when the 500 best keep their probability and the others share the rest evenly. "
        "Our definition; the challenge's scorer is not public, so it is no leaderboard number.",
        measure=tokens.top_k_residual,
        bound="teacher_forced_top500_ce",
    ),
    Metric(
        id="top500_ce_floor",
        label="Top-500 CE (floor)",
        unit="nats",
        higher_is_better=False,
        group="token",
        meaning="Cost when the 500 best are renormalised and a miss costs a fixed 13.8 nats (probability 1e-6).",
        measure=tokens.top_k_floor,
    ),
    Metric(
        id="top500_ce_hits_only",
        label="Top-500 CE (hits only)",
        unit="nats",
        higher_is_better=False,
        group="token",
        meaning="The same over hits alone. A diagnostic: missing the hard tokens lowers it.",
        measure=tokens.top_k_hits_only,
        sparse=True,
    ),
    Metric(
        id="top500_coverage",
        label="Top-500 coverage",
        unit="share",
        group="token",
        meaning="Share of true tokens that are among the 500 best.",
        measure=tokens.top_k_coverage,
    ),
    Metric(
        id="full_ce",
        label="Cross-entropy",
        unit="nats",
        higher_is_better=False,
        group="token",
        meaning="Cost of a true token over the whole vocabulary.",
        measure=tokens.cross_entropy,
        bound="teacher_forced_ce",
    ),
    Metric(
        id="token_accuracy",
        label="Accuracy",
        unit="share",
        group="token",
        meaning="Share of tokens whose best guess is the true one.",
        measure=tokens.accuracy,
        bound="teacher_forced_accuracy",
    ),
):
    register(_metric)
