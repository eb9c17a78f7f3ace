"""Every metric there is: one entry each, with its id, what people read, and the function that computes it.

To add one, `register` an entry: rows, metrics.json, tables, plots and the report follow. Ids stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Float, Float32, Int64
from torch import Tensor

from worldline.metrics import image, tokens
from worldline.metrics.tokens import Guesses


@dataclass(frozen=True)
class Metric:
    """A number of each clip, and how to print it."""

    id: str
    label: str
    unit: str
    """`dB`, `nats`, `share` (0..1) or empty."""
    group: Literal["image", "token"]
    """Computed on frames, or on the probabilities of tokens."""
    measure: Callable[..., Tensor] | None
    """`image`: of predicted and true frames `b f 3 h w` one number per frame `b f`, which makes a curve ID and the
    metrics ID_last and ID_mean; `token`: of `Guesses` one number per token; None of what follows from another entry."""
    meaning: str
    higher_is_better: bool = True
    bound: str | None = None
    """Id of the same cost where each grid is predicted from the true grids before it, for which no forecast is read."""
    sparse: bool = False
    """NaN of a clip that has nothing to measure (say, no hit): such a clip is left out."""


METRICS: dict[str, Metric] = {}
"""By id, in the order of tables."""


def register(metric: Metric) -> None:
    """Add an entry, and of an image metric those of its last frame and its mean, of a token metric its bound."""

    def derived(id: str, label: str, meaning: str) -> None:
        label = f"{metric.label}, {label}"
        METRICS[id] = replace(metric, id=id, label=label, meaning=meaning, measure=None, bound=None)

    METRICS[metric.id] = metric
    if metric.group == "image":
        derived(f"{metric.id}_last", "last frame", f"{metric.meaning} Of the last predicted frame.")
        derived(f"{metric.id}_mean", "all frames", f"{metric.meaning} Mean over every predicted frame.")
    if metric.bound is not None:
        derived(metric.bound, "teacher-forced", "Each grid is predicted from the true grids before it: no forecast.")


def token_costs(guesses: Guesses) -> dict[str, Float32[Tensor, " n"]]:
    """Every metric of tokens, by id: one number per true token."""
    measured = {metric.id: metric.measure for metric in METRICS.values() if metric.group == "token"}
    return {id: measure(guesses) for id, measure in measured.items() if measure is not None}


def grid_costs(logits: Float[Tensor, "h w v"], true: Int64[Tensor, "h w"]) -> dict[str, Float32[Tensor, ""]]:
    """Every metric of tokens, by id: the mean over the true tokens of one grid under its logits."""
    costs = token_costs(tokens.guesses_of(logits.flatten(0, 1), true.flatten().to(logits.device)))
    return {id: tokens.per_clip(cost, 1)[0] for id, cost in costs.items()}


def _image(id: str, label: str, unit: str, measure: Callable[..., Tensor], meaning: str, **more: Any) -> None:
    register(Metric(id, label, unit, "image", measure, meaning, **more))


def _token(id: str, label: str, unit: str, measure: Callable[..., Tensor], meaning: str, **more: Any) -> None:
    register(Metric(id, label, unit, "token", measure, meaning, higher_is_better=unit != "nats", **more))


def _absent(reason: str) -> Callable[..., Tensor]:
    def measure(*_: object) -> Tensor:
        raise image.MetricUnavailable(reason)

    return measure


_WEIGHTS = "needs learned weights that are not part of worldline"
_INCEPTION = "needs the standard Inception weights, and far more images than an evaluation has"
_RESIDUAL = (
    "Cost of a true token when the 500 best keep their probability and the others share the rest evenly. "
    "Our definition; the challenge's scorer is not public, so it is no leaderboard number."
)
_FLOOR = "Cost when the 500 best are renormalised and a miss costs a fixed 13.8 nats (probability 1e-6)."
_HITS = "The same over hits alone. A diagnostic: missing the hard tokens lowers it."

_image("psnr_db", "PSNR", "dB", image.psnr, "Peak signal-to-noise ratio, averaged in dB.")
_image("ssim", "SSIM", "", image.ssim, "Structural similarity.")
_image("lpips", "LPIPS", "", _absent(_WEIGHTS), "Perceptual distance.", higher_is_better=False)
_image("fid", "FID", "", _absent(_INCEPTION), "Distance of sets of images.", higher_is_better=False)
_token(
    "top500_ce_residual",
    "Top-500 CE (residual)",
    "nats",
    tokens.top_k_residual,
    _RESIDUAL,
    bound="teacher_forced_top500_ce",
)
_token("top500_ce_floor", "Top-500 CE (floor)", "nats", tokens.top_k_floor, _FLOOR)
_token("top500_ce_hits_only", "Top-500 CE (hits only)", "nats", tokens.top_k_hits_only, _HITS, sparse=True)
_token("top500_coverage", "Top-500 coverage", "share", tokens.top_k_coverage, "Share of tokens among the 500 best.")
_token(
    "full_ce",
    "Cross-entropy",
    "nats",
    tokens.cross_entropy,
    "Cost of a true token over the whole vocabulary.",
    bound="teacher_forced_ce",
)
_token(
    "token_accuracy",
    "Accuracy",
    "share",
    tokens.accuracy,
    "Share of tokens whose best guess is the true one.",
    bound="teacher_forced_accuracy",
)
