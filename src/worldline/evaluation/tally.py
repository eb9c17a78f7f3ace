"""Numbers per clip, gathered batch by batch: what an evaluation adds up before it averages.

Knows metrics, not models: who predicted what is only a row's id.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

from jaxtyping import UInt8
from torch import Tensor

from worldline.evaluation.rows import Made
from worldline.metrics.image import MetricUnavailable
from worldline.metrics.table import METRICS

_table = partial(defaultdict, partial(defaultdict, list))


@dataclass
class Tally:
    """Numbers per clip: `values[row][metric]` and `curves[metric][row]` are lists, one tensor for each batch."""

    values: dict[str, dict[str, list[Tensor]]] = field(default_factory=_table)
    curves: dict[str, dict[str, list[Tensor]]] = field(default_factory=_table)
    shown: dict[str, list[UInt8[Tensor, "t 3 h w"]]] = field(default_factory=partial(defaultdict, list))
    episodes: list[int] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    """What is added up over all clips, such as how often each token occurred."""

    def add(self, later: "Tally") -> None:
        """Append what was found of later clips."""
        for mine, others in ((self.values, later.values), (self.curves, later.curves)):
            for outer, lists in others.items():
                for inner, parts in lists.items():
                    mine[outer][inner] += parts
        for row, clips in later.shown.items():
            self.shown[row] += clips
        self.episodes += later.episodes
        self.not_computed |= later.not_computed
        self.settings |= later.settings
        self.totals |= {name: self.totals.get(name, 0) + value for name, value in later.totals.items()}

    def score(self, row: str, made: Made, truth: UInt8[Tensor, "b f 3 h w"] | None) -> None:
        """Measure all that can be measured of a row; what cannot is noted, not made up."""
        self.settings |= made.settings
        for metric, cost in made.costs.items():
            self.values[row][metric].append(cost.nanmean(dim=1))
        if made.frames is None or truth is None:
            return
        for metric in [metric for metric in METRICS.values() if metric.group == "image" and metric.measure]:
            try:
                values = metric.measure(made.frames, truth)  # pyright: ignore[reportOptionalCall]
            except MetricUnavailable as reason:
                self.not_computed[metric.id] = str(reason)
                continue
            self.curves[metric.id][row].append(values)
            self.values[row][f"{metric.id}_last"].append(values[:, -1])
            self.values[row][f"{metric.id}_mean"].append(values.mean(dim=1))
