"""Numbers of a set of images: each clip gives features, and the distance is computed once all clips have theirs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.metrics.bootstrap import Interval
from worldline.metrics.frechet import distance_interval, halves_distance
from worldline.metrics.networks import Networks
from worldline.metrics.table import METRICS, NotComputed

FLOOR = "_floor"
"""Ends the setting that holds a metric's distance between two halves of the true frames."""
TRUTH = "real"
"""The name of the true frames among those of rows."""
Features = dict[tuple[str, str], Float32[Tensor, "n d"]]
"""(row, metric) -> one vector for each clip; the row of the true frames is `TRUTH`."""


def features_of(row: str, frames: UInt8[Tensor, "b f 3 h w"], networks: Networks) -> tuple[Features, dict[str, str]]:
    """Features of a batch of clips for every metric of sets, and why there are none for others."""
    found, not_computed = Features(), {}
    for metric in METRICS.values():
        if metric.group == "set" and metric.measure is not None:
            try:
                found[row, metric.id] = metric.measure(frames, networks)
            except NotComputed as reason:
                not_computed[metric.id] = str(reason)
    return found, not_computed


@dataclass(frozen=True, kw_only=True)
class SetNumbers:
    """What all features together say."""

    rows: dict[str, dict[str, Interval]]
    """Row -> metric -> its distance from the true frames."""
    settings: dict[str, float]
    """See `FLOOR`."""
    not_computed: dict[str, str]


def set_numbers(features: Mapping[tuple[str, str], Tensor], episodes: Int64[Tensor, " n"]) -> SetNumbers:
    """Compare the features of every row with those of the true frames of the same clips."""
    rows: dict[str, dict[str, Interval]] = {}
    settings, not_computed = {}, {}
    for (row, metric), values in features.items():
        real = features[TRUTH, metric]
        try:
            if row == TRUTH:
                floor = halves_distance(real, episodes)
                settings |= {} if floor is None else {f"{metric}{FLOOR}": round(floor, 4)}
            else:
                rows.setdefault(row, {})[metric] = distance_interval(values, real, episodes)
        except NotComputed as reason:
            not_computed[metric] = str(reason)
    return SetNumbers(rows=rows, settings=settings, not_computed=not_computed)


def floors_of(settings: Mapping[str, object], ids: Iterable[str] = METRICS) -> list[str]:
    """What the settings of an evaluation say of the distances between halves of the truth, in words."""
    found = {id: settings[id + FLOOR] for id in ids if id + FLOOR in settings}
    return [f"{METRICS[id].label} between two halves of the true frames: {value}" for id, value in found.items()]
