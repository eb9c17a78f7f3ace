"""Numbers per clip, gathered batch by batch: what an evaluation adds up before it averages.

Knows metrics, not models: who predicted what is only a row's id.
"""

from dataclasses import dataclass, field
from typing import TypeVar

from jaxtyping import UInt8
from torch import Tensor

from worldline.evaluation.rows import Made, Setting
from worldline.metrics.image import MetricUnavailable
from worldline.metrics.table import METRICS

Key = TypeVar("Key")


@dataclass
class Tally:
    """Numbers per clip, one tensor for each batch; `values` and `curves` by (row, metric)."""

    values: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    shown: dict[str, list[UInt8[Tensor, "t 3 h w"]]] = field(default_factory=dict)
    """Frames of some clips, context and forecast, by row."""
    episodes: list[int] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    """What is added up over all clips, such as how often each token occurred."""

    def add(self, later: "Tally") -> None:
        """Append what was found of later clips."""
        _append(self.values, later.values)
        _append(self.curves, later.curves)
        _append(self.shown, later.shown)
        self.episodes += later.episodes
        self.not_computed |= later.not_computed
        self.settings |= later.settings
        self.totals |= {name: self.totals.get(name, 0) + value for name, value in later.totals.items()}

    def score(self, row: str, made: Made, truth: UInt8[Tensor, "b f 3 h w"] | None) -> None:
        """Measure all that can be measured of a row; what cannot is noted, not made up."""
        self.settings |= made.settings
        self.values |= {(row, metric): [cost.nanmean(dim=1)] for metric, cost in made.costs.items()}
        for metric in METRICS.values():
            if made.frames is None or truth is None or metric.group != "image" or metric.measure is None:
                continue
            try:
                values = metric.measure(made.frames, truth)
            except MetricUnavailable as reason:
                self.not_computed[metric.id] = str(reason)
            else:
                self.curves[row, metric.id] = [values]
                self.values[row, f"{metric.id}_last"] = [values[:, -1]]
                self.values[row, f"{metric.id}_mean"] = [values.mean(dim=1)]


def _append(mine: dict[Key, list[Tensor]], later: dict[Key, list[Tensor]]) -> None:
    for key, parts in later.items():
        mine.setdefault(key, []).extend(parts)
