"""Is the size of what a world says of its uncertainty right? Spread against error, chances against what came.

Tables, sentences and charts of the study `uncertainty`, from what it measured.
"""

from typing import Any

import numpy as np

from worldline.evaluation.result import Chart, Column, Curve, Line, Table
from worldline.evaluation.study import Found
from worldline.metrics.bootstrap import Interval, statistics
from worldline.metrics.uncertainty import calibration_error, per_bin, spread_skill

FEWEST = 200
"""Values below which a bin is not drawn: a handful of pixels says nothing."""


def _numpy(found: Found, name: str) -> Any:
    return found.measured[name].double().numpy()


def _samples(found: Found) -> int:
    return found.judged.forecaster.num_samples


def _ratio(found: Found, frames: slice) -> Interval:
    """Spread over error (`spread_skill`) over some of the frames."""
    variance, error = (_numpy(found, name)[:, frames].mean(axis=1) for name in ("variance", "squared_error"))
    return statistics(lambda w: spread_skill(w, variance, error, _samples(found))[:, None], found.episodes)[0]


def _roots(found: Found, name: str, factor: float = 1.0) -> list[Interval]:
    """The root of the mean square over clips, of each frame."""
    values = _numpy(found, name)
    return statistics(lambda w: np.sqrt(factor * (w @ values) / w.sum(axis=1, keepdims=True)), found.episodes)


def ensemble_table(found: Found) -> list[Table]:
    """Scores of the samples together, last frame and all frames."""
    if "variance" not in found.measured:
        return []
    last, every = slice(-1, None), slice(None)
    lines = [Line("spread / error (1 is calibrated)", (_ratio(found, last), _ratio(found, every)))]
    labels = {
        "crps": "CRPS",
        "absolute_error": "absolute error of the mean, as CRPS of a certain forecast",
        "energy": "energy score, 8x8 grey",
    }
    for name, label in labels.items():
        values = found.measured[name]
        last_and_all = found.interval(values[:, -1]), found.interval(values.mean(dim=1))
        lines.append(Line(f"{label} (grey levels)", last_and_all))
    columns = Column("last frame"), Column("all frames")
    return [Table(title=f"The ensemble of {_samples(found)} samples", columns=columns, lines=tuple(lines))]


def token_table(found: Found) -> list[Table]:
    if "confidence_bins" not in found.measured:
        return []
    values: dict[str, Interval | None] = {}
    for label, name in (("accuracy", "hit"), ("mean confidence", "confidence")):
        values[f"{label} (share)"] = found.interval(found.measured[name].mean(dim=1))
    for label, name in (("of confidence (share)", "confidence_bins"), ("of entropy (nats)", "entropy_bins")):
        sums = _numpy(found, name)
        error = statistics(lambda w, sums=sums: calibration_error(w, sums)[:, None], found.episodes)[0]
        values[f"expected calibration error {label}"] = error
    for label, name in (("cost", "cost"), ("entropy", "entropy")):
        values[f"mean {label} (nats)"] = found.interval(found.measured[name].mean(dim=1))
    for name in ("changed", "kept"):
        values[f"entropy where the token {'changes' if name == 'changed' else 'stays'} (nats)"] = found.interval(
            found.measured[f"entropy_{name}"]
        )
    lines = tuple(Line(label, (value,)) for label, value in values.items())
    return [Table(title="Calibration of the tokens", columns=(Column("all grids"),), lines=lines)]


def calibrated(found: Found) -> str:
    """One sentence on whether the size of its uncertainty is right."""
    if "variance" in found.measured:
        ratio = _ratio(found, slice(None))
        word = "too sure" if ratio.high < 1 else "too unsure" if ratio.low > 1 else "calibrated as far as it shows"
        return f" Its spread is {ratio.said()} of its error: it is {word}."
    if "confidence_bins" in found.measured:
        confidence, hit = (found.measured[name].mean(dim=1) for name in ("confidence", "hit"))
        above = found.interval(confidence - hit)
        if above is not None:
            word = "too sure" if above.low > 0 else "too unsure" if above.high < 0 else "calibrated as far as it shows"
            return f" It gives its best tokens {confidence.mean():.0%}, and {hit.mean():.0%} are right: it is {word}."
    return ""


def unsure_of(found: Found) -> str:
    """One sentence on what the world is unsure of."""
    if "variance_changed" in found.measured:
        inside, variance, share = (_numpy(found, name).sum() for name in ("variance_changed", "variance", "changed"))
        share /= found.measured["changed"].numel()
        if variance > 0:
            return f" {inside / variance:.0%} of its spread lies on the {share:.0%} of pixels that change."
    if "entropy_changed" in found.measured:
        changed, kept = (found.interval(found.measured[f"entropy_{name}"]) for name in ("changed", "kept"))
        if changed is not None and kept is not None:
            return f" Tokens that change have {changed.mean:.2f} nats of entropy, those that stay {kept.mean:.2f}."
    return ""


# --- charts ---


def reliability(found: Found) -> list[Chart]:
    charts = []
    for name, title, x_label, y_label, root in (
        ("spread_bins", "Reliability of the spread", "predicted error (grey levels)", "error (grey levels)", True),
        ("confidence_bins", "Reliability of the best token", "confidence", "share that is right", False),
        ("entropy_bins", "Reliability of the entropy", "entropy (nats)", "cost of the true token (nats)", False),
    ):
        if name not in found.measured:
            continue
        sums = _numpy(found, name)
        used = sums[..., 0].sum(axis=0) >= FEWEST
        if not used.any():
            continue
        scale = np.sqrt if root else np.asarray
        x = [float(one) for one in scale(per_bin(np.ones((1, len(sums))), sums[:, used])[0][0])]
        y = statistics(lambda w, s=sums[:, used], f=scale: f(per_bin(w, s)[1]), found.episodes)
        equal = (Interval(mean=v, low=v, high=v, num_clips=y[0].num_clips, num_episodes=y[0].num_episodes) for v in x)
        curves = Curve("forecast", tuple(x), tuple(y)), Curve("calibrated", tuple(x), tuple(equal))
        charts.append(Chart(title=title, x_label=x_label, y_label=y_label, curves=curves))
    return charts


def over_time(found: Found) -> list[Chart]:
    """Spread and error, their ratio, entropy and cost, against the time after the last frame seen."""
    charts, seconds = [], found.seconds
    if "variance" in found.measured:
        scale = 1 + 1 / _samples(found)
        spread, error = _roots(found, "variance", scale), _roots(found, "squared_error")
        curves = [Curve(name, tuple(seconds), tuple(y)) for name, y in (("spread", spread), ("error", error))]
        label = "grey levels, root mean square"
        charts.append(Chart(title="Spread and error", x_label="seconds", y_label=label, curves=tuple(curves)))
        ratio = Curve(
            "spread / error", tuple(seconds), tuple(_ratio(found, slice(i, i + 1)) for i in range(len(seconds)))
        )
        charts.append(Chart(title="Spread-skill ratio", x_label="seconds", y_label="1 is calibrated", curves=(ratio,)))
    grid = found.judged.forecaster.token_grid
    if "cost" in found.measured and grid is not None:
        count = found.measured["cost"].shape[1]
        ends = np.cumsum(grid.frames_per_latent * (count // grid.latents_per_block)) / found.fps
        curves = []
        for name, label in (("entropy", "entropy"), ("cost", "cost of the true token")):
            points = [found.interval(values) for values in found.measured[name].unbind(dim=1)]
            known = [(x, y) for x, y in zip(ends.tolist(), points, strict=True) if y is not None]
            curves.append(Curve(label, tuple(x for x, _ in known), tuple(y for _, y in known)))
        chart = Chart(title="Entropy and cost", x_label="seconds", y_label="nats per token", curves=tuple(curves))
        charts.append(chart)
    return charts
