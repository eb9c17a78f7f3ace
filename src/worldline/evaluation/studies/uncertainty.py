"""What is the world unsure of, and can its sureness be trusted? Calibration, and signals that sort bad forecasts out.

A *signal* is one number of a clip, known when the forecast is made: low where the world is sure. It is worth something
if the forecasts it is low for are the better ones. All signals but one come from what an evaluation makes anyway; that
one, the residual of the context, costs one call of the decoder. docs/uncertainty.md says how each number is read.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from worldline.evaluation.result import Chart, Column, Curve, Finding, Line, Table
from worldline.evaluation.rows import Scene, conditional_mean_id, mean_id
from worldline.evaluation.studies.calibration import (
    calibrated,
    ensemble_table,
    over_time,
    reliability,
    token_table,
    unsure_of,
)
from worldline.evaluation.study import Found, Map, Study, study
from worldline.forecasting.forecaster import Forecaster
from worldline.metrics.bootstrap import Interval, Weights, statistics
from worldline.metrics.image import changes
from worldline.metrics.table import NotComputed
from worldline.metrics.uncertainty import (
    COVERAGES,
    auroc,
    binned,
    crps,
    energy_score,
    gain_share,
    partial_rank_correlation,
    rank_correlation,
    selective,
)
from worldline.schema import Certainty, TokenGrid

SIGNALS = {
    "spread": "spread of the samples",
    "entropy": "entropy of the tokens",
    "members": "disagreement of the members",
    "draws": "disagreement of estimates",
    "flow": "instability of the flow",
    "residual": "residual of the context",
    "motion": "predicted motion alone",
}
"""Labels by id. The first one there is is the world's own sureness, chosen before anything is measured."""
BAD = 0.25
"""Share of the clips whose forecasts count as bad: those of the lowest PSNR in the last frame (of tokens alone: the
highest cost). By the error itself and not by the loss against copy-last: who uses a forecast meets its error, whatever
moved. The worst quarter leaves enough clips on both sides, and no threshold in dB that would fit one robot only."""
STILL = 0.5
"""Grey levels that predicted motion is at least taken to be: about what rounding frames to whole numbers leaves."""
CHANGED = 12.0
"""Grey levels by which a pixel differs from the last context frame's, to count as changed."""
SPREAD_EDGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Of the bins of spread, in grey levels."""
ENTROPY_EDGES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Of the bins of entropy, in nats."""
CONFIDENCE_EDGES = tuple(n / 10 for n in range(10))
USEFUL = 0.7
"""AUROC below which a signal is of no use: among the quarter of highest signals it then finds less than half of the bad
clips (of normally distributed signals)."""
FEW = 10
"""Episodes below which an interval is too narrow, and no verdict is given: of four clips, one is bad, and a signal that
knows nothing is highest, or lowest, for that one in a quarter of all cases; no resample would show anything else."""
HALVED = 4
"""Samples that are enough for two halves with a spread each."""
KEPT = (0.75, 0.5, 0.25)
"""Shares of the clips of which selective quality is said."""


@study
class Uncertainty(Study):
    """Spread or entropy, their calibration, and what every signal is worth."""

    id: ClassVar[str] = "uncertainty"
    title: ClassVar[str] = "Does it know when it is unsure?"

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b ..."]]:
        """Signals of each clip, scores of its samples, and sums for calibration."""
        found = {f"signal/{name}": values for name, values in _signals(scene).items()}
        samples = scene.forecast.frames
        if samples is not None and samples.shape[1] > 1 and scene.truth is not None:
            found |= _of_samples(samples, scene.truth, scene.before)
        if (sure := scene.forecast.certainty) is not None:
            found |= _of_tokens(sure, scene)
        if not found:
            raise NotComputed("there are neither frames nor tokens to be unsure of")
        return found

    def maps(self, scene: Scene) -> Mapping[str, Map]:
        """Where the world was unsure, at each predicted time."""
        found, forecast, count = {}, scene.forecast, len(scene.forecaster.times)
        if forecast.frames is not None and (samples := forecast.frames.shape[1]) > 1:
            found["spread"] = Map(f"spread of {samples} samples", "grey levels", forecast.spread)
        grid, sure = scene.forecaster.token_grid, forecast.certainty
        if grid is not None and sure is not None:
            entropies = {"token_entropy": ("token entropy", sure.entropy)}
            if sure.disagreement is not None:
                entropies["member_disagreement"] = ("disagreement of the members", sure.disagreement)
            for id, (label, values) in entropies.items():
                if (shown := _per_frame(values, grid)).shape[1] == count:
                    found[id] = Map(label, "nats", shown)
        return found

    def conclude(self, found: Found) -> Finding:
        """Judge the world's own sureness, then list every signal."""
        quality = _quality(found)
        signals = {name: found.measured[f"signal/{name}"] for name in SIGNALS if f"signal/{name}" in found.measured}
        if len(found.episodes) < 2 or not signals:
            raise NotComputed("two clips or more are needed to compare the sure with the unsure")
        worth = _Worth(found, quality, signals)
        own = next(name for name in signals)
        calibration = [*ensemble_table(found), *token_table(found)]
        verdict, said = _verdict(worth, own)
        return Finding(
            id=self.id,
            title=self.title,
            verdict=verdict,
            sentence=f"{said}{calibrated(found)}{unsure_of(found)}",
            tables=(worth.table(), *calibration),
            charts=(*reliability(found), worth.chart(own), *over_time(found)),
            notes=_notes(found, worth, own),
        )


# --- what is measured of a batch ---


def _signals(scene: Scene) -> dict[str, Float32[Tensor, " b"]]:
    """All that this forecaster has, raw."""
    found: dict[str, Tensor] = {}
    forecast, sure = scene.forecast, scene.forecast.certainty
    if sure is not None:
        found["entropy"] = sure.entropy.flatten(1).mean(dim=1)
        if sure.disagreement is not None:
            found["members"] = sure.disagreement.flatten(1).mean(dim=1)
    if forecast.frames is not None and forecast.frames.shape[1] > 1:
        found["spread"] = _root(forecast.spread)
    made = {row: made.frames for row, made in scene.made.items() if made.frames is not None}
    estimates = [frames for row, frames in made.items() if row.startswith("conditional_mean_")]
    one, sample = made.get(conditional_mean_id(1)), made.get(mean_id(1))
    if len(estimates) > 1:  # those of the fewest and of the most draws
        found["draws"] = _distance(estimates[0], estimates[-1])
    if one is not None and sample is not None:  # from the same noise: its first estimate, and its end
        found["flow"] = _distance(one, sample)
    means = [mean for member in scene.forecaster.members if (mean := member.conditional_mean(1)) is not None]
    if means and "members" not in found:
        found["members"] = _disagreement(scene, means)
    if (context := scene.forecaster.round_trip(scene.batch)) is not None:
        found["residual"] = _distance(*context)
    if forecast.frames is not None and scene.before is not None:  # of a mean over samples little would be left
        found["motion"] = changes(forecast.frames[:, 0], scene.before).mean(dim=1)
    return found


def _disagreement(scene: Scene, means: Sequence[Forecaster]) -> Float32[Tensor, " b"]:
    """How far apart the means are that members of an ensemble over latents expect, each in one call."""
    made = [scene.forecast_of(one).video[:, 0] for one in means]
    spread = torch.stack([torch.stack(part).float().var(dim=0) for part in zip(*made, strict=True)])
    return spread.flatten(1).mean(dim=1).sqrt()


def _root(values: Float[Tensor, "b *n"]) -> Float32[Tensor, " b"]:
    return values.float().flatten(1).square().mean(dim=1).sqrt()


def _distance(one: UInt8[Tensor, "b n 3 h w"], other: UInt8[Tensor, "b n 3 h w"]) -> Float32[Tensor, " b"]:
    """Root mean square difference of each clip, in grey levels."""
    return torch.stack([(a.float() - b.float()).square().mean().sqrt() for a, b in zip(one, other, strict=True)])


def _of_samples(
    samples: UInt8[Tensor, "b k f 3 h w"], truth: UInt8[Tensor, "b f 3 h w"], before: UInt8[Tensor, "b 3 h w"] | None
) -> dict[str, Float32[Tensor, "b ..."]]:
    """Scores of the ensemble for each frame, reliability of the spread, and how much of it lies where things change."""
    several, sums = [], []
    for frame in range(truth.shape[1]):
        x, y = samples[:, :, frame].float(), truth[:, frame].float()
        variance, mean = x.var(dim=1).mean(dim=1), x.mean(dim=1)
        error = (mean - y).square().mean(dim=1)
        sums.append(_reliability(x, y))
        changed = torch.zeros_like(variance, dtype=torch.bool)
        if before is not None:
            changed = (y - before.float()).abs().mean(dim=1) > CHANGED
        parts = (variance, error, (mean - y).abs().mean(dim=1), variance * changed, changed.float())
        several.append([part.flatten(1).mean(dim=1) for part in parts])
    names = ("variance", "squared_error", "absolute_error", "variance_changed", "changed")
    found = {name: torch.stack(part, dim=1) for name, part in zip(names, zip(*several, strict=True), strict=True)}
    found |= {"crps": crps(samples, truth), "energy": energy_score(samples, truth)}
    if samples.shape[1] >= HALVED:
        found["spread_bins"] = torch.stack(sums).sum(dim=0)
    return found


def _reliability(x: Float32[Tensor, "b k 3 h w"], y: Float32[Tensor, "b 3 h w"]) -> Float32[Tensor, "b bins 3"]:
    """Predicted and realised squared error of the mean of half the samples, in bins of the other half's spread.

    A spread of few samples is low by chance, too: in bins of itself even a calibrated ensemble would look too sure
    where it is low, and too unsure where it is high (regression to the mean).
    """
    half = x.shape[1] // 2
    if half < 2:
        return x.new_zeros(len(x), len(SPREAD_EDGES), 3)
    by, kept = x[:, :half].var(dim=1).mean(dim=1).sqrt(), x[:, half:]
    predicted = (1 + 1 / kept.shape[1]) * kept.var(dim=1).mean(dim=1)
    return binned(by, predicted, (kept.mean(dim=1) - y).square().mean(dim=1), SPREAD_EDGES)


def _of_tokens(sure: Certainty, scene: Scene) -> dict[str, Float32[Tensor, "b ..."]]:
    """Sums for the calibration of tokens, and the entropy where tokens change and where they stay."""
    found = {"entropy": sure.entropy.flatten(2).mean(dim=2), "confidence": sure.confidence.flatten(2).mean(dim=2)}
    if sure.cost is None or sure.hit is None:
        return found
    past, future = scene.tokens
    changed = future != past[:, -1:]
    for name, places in (("changed", changed), ("kept", ~changed)):
        found[f"entropy_{name}"] = sure.entropy.where(places, torch.nan).flatten(1).nanmean(dim=1)
    hit = sure.hit.float()
    found |= {"cost": sure.cost.flatten(2).mean(dim=2), "hit": hit.flatten(2).mean(dim=2)}
    found["confidence_bins"] = binned(sure.confidence, sure.confidence, hit, CONFIDENCE_EDGES)
    return found | {"entropy_bins": binned(sure.entropy, sure.entropy, sure.cost, ENTROPY_EDGES)}


def _per_frame(values: Float32[Tensor, "b l gh gw"], grid: TokenGrid) -> Float32[Tensor, "b f gh gw"]:
    """Of each frame the value of the latent that covers it."""
    blocks = values.shape[1] // grid.latents_per_block
    return values.repeat_interleave(torch.tensor(grid.frames_per_latent * blocks), dim=1)


# --- what signals are worth ---


def _quality(found: Found) -> tuple[str, str, Tensor]:
    """What makes a forecast good: its label, its unit, and the number of each clip, higher where better."""
    numbers = found.numbers[found.forecast]
    if "psnr_db_last" in numbers:
        return "PSNR, last frame", "dB", numbers["psnr_db_last"].double()
    if "full_ce" in numbers:
        return "minus the cost of a token", "nats", -numbers["full_ce"].double()
    raise NotComputed("neither frames nor tokens of the forecast are scored")


class _Worth:
    """AUROC, rank correlation and selective quality of every signal, raw and as a ratio to predicted motion."""

    def __init__(self, found: Found, quality: tuple[str, str, Tensor], signals: Mapping[str, Tensor]) -> None:
        self.label, self.unit, values = quality
        self.quality, self.episodes = values.numpy(), found.episodes
        self.bad = self.quality <= np.quantile(self.quality, BAD)
        self.signals = {name: one.double().numpy() for name, one in signals.items()}
        self.motion = self.signals.get("motion")
        self.lines: dict[str, tuple[Interval, ...]] = {}
        for name, raw in self.signals.items():
            self.lines[SIGNALS[name]] = self._of(raw)
            if self.motion is not None and name != "motion":
                self.lines[f"{SIGNALS[name]}, by motion"] = self._of(raw / np.maximum(self.motion, STILL))

    def _of(self, signal: np.ndarray) -> tuple[Interval, ...]:
        def of(weights: Weights) -> np.ndarray:
            area = auroc(weights, signal, self.bad)
            above = area - auroc(weights, self.motion, self.bad) if self.motion is not None else area - 0.5
            kept = selective(weights, signal, self.quality, (*KEPT, 1.0))
            ranks = rank_correlation(weights, signal, -self.quality)
            alike = np.full_like(ranks, np.nan)
            if self.motion is not None:
                alike = partial_rank_correlation(weights, signal, -self.quality, self.motion)
            gains = kept[:, :-1] - kept[:, -1:]
            return np.stack([area, above, ranks, alike, *gains.T, gain_share(weights, signal, self.quality)], axis=1)

        return tuple(statistics(of, self.episodes))

    def of(self, name: str) -> dict[str, Interval]:
        area, _, _, alike, *kept, _ = self.lines[SIGNALS[name]]
        return {"auroc": area, "alike": alike, "half": kept[KEPT.index(0.5)]}

    def table(self) -> Table:
        columns = (
            Column("AUROC"),
            Column("less motion's" if self.motion is not None else "less 0.5"),
            Column("rank correlation with error"),
            Column("the same at equal motion"),
            *(Column(f"gain, surest {share:.0%}", self.unit) for share in KEPT),
            Column("share of the possible gain"),
        )
        numbers = {label: [None if np.isnan(one.mean) else one for one in own] for label, own in self.lines.items()}
        lines = (Line(label, tuple(values)) for label, values in numbers.items())
        title = f"Signals: does a low one mean a good forecast ({self.label})?"
        return Table(title=title, columns=columns, lines=tuple(lines))

    def chart(self, own: str) -> Chart:
        """Selective quality against coverage, beside the best possible order and that by motion."""
        orders = {SIGNALS[own]: self.signals[own]}
        if self.motion is not None and own != "motion":
            orders |= {SIGNALS["motion"]: self.motion}
        orders["best possible order"] = -self.quality
        curves = []
        for label, signal in orders.items():
            points = statistics(lambda w, by=signal: selective(w, by, self.quality, COVERAGES), self.episodes)
            curves.append(Curve(label, COVERAGES, tuple(points)))
        y_label = f"{self.label} of the surest ({self.unit})"
        return Chart(title="Risk and coverage", x_label="share of clips kept", y_label=y_label, curves=tuple(curves))


def _verdict(worth: _Worth, own: str) -> tuple[str, str]:
    """`yes`, `no`, `misleading` or `undecided`, from the world's own signal, and the first part of the sentence."""
    area, half, name = worth.of(own)["auroc"], worth.of(own)["half"], SIGNALS[own]
    gain, sure = half.said(worth.unit), f"AUROC {area.said()}"
    about = f"({sure}; its surest half is {gain} better than all)"
    open_yet = f"Whether its {name} tells good forecasts from bad ones is not decided by these clips {about}."
    if area.num_episodes < FEW:
        return "undecided", open_yet
    if area.low > 0.5 and half.low > 0:
        alike = worth.of(own)["alike"]
        beyond = "" if np.isnan(alike.mean) else "; but how much moves tells as much"
        beyond = ", which is not merely how much moves" if alike.low > 0 else beyond
        return "yes", f"The half of the clips it is surest of ({name}) are forecast {gain} better than all{beyond}."
    if area.high < 0.5:
        return "misleading", f"Its {name} misleads: bad forecasts are those it is sure of ({sure})."
    if area.high < USEFUL:
        return "no", f"Its {name} does not tell good forecasts from bad ones {about}."
    return "undecided", open_yet


def _notes(found: Found, worth: _Worth, own: str) -> tuple[str, ...]:
    measure = f"{worth.label} ({worth.unit})"
    notes = [
        f"Bad: the worst quarter of the clips by {measure}. AUROC: how often a bad clip has the higher signal; 0.5 "
        "says nothing. Gains are over all clips.",
        f"Judged by the {SIGNALS[own]}: the first there is of {', '.join(SIGNALS.values())}; the best of them on these "
        "clips would look better than it is.",
        "What moves a lot is forecast worse, so motion alone is a signal. By motion: divided by the motion of the "
        "forecast. At equal motion: the partial rank correlation.",
    ]
    if "variance" not in found.measured and found.judged.protocol == "sampling":
        notes.append("One sample has no spread; for spread, CRPS and energy score draw several (--num-samples 8).")
    elif "variance" in found.measured and "spread_bins" not in found.measured:
        notes.append(f"The reliability of the spread needs {HALVED} samples or more.")
    if found.episodes.unique().numel() < FEW:
        notes.append("Fewer than ten episodes: intervals are too narrow, so nothing is decided.")
    return tuple(notes)
