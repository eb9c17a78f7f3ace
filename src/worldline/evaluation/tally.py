"""Numbers per clip, by the ids of rows and metrics: what an evaluation gathers before it averages."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor

from worldline.evaluation.rows import Made, Setting
from worldline.metrics.image import MetricUnavailable
from worldline.metrics.table import METRICS


@dataclass
class Tally:
    """Scores of some clips."""

    episodes: list[int]
    values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(row, metric) -> one number per clip."""
    curves: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """(row, metric) -> one number per clip and frame."""
    shown: dict[str, UInt8[Tensor, "n t 3 h w"]] = field(default_factory=dict)
    """Frames of some clips, context and forecast, by row."""
    not_computed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums over all clips, such as how often each token occurred."""

    @staticmethod
    def joined(parts: "Sequence[Tally]") -> "Tally":
        """Scores of all clips, in order. Each batch was scored in the same way."""
        first = parts[0]
        return Tally(
            episodes=[episode for part in parts for episode in part.episodes],
            values={key: torch.cat([part.values[key] for part in parts]) for key in first.values},
            curves={key: torch.cat([part.curves[key] for part in parts]) for key in first.curves},
            shown={key: torch.cat([part.shown[key] for part in parts]) for key in first.shown},
            not_computed=first.not_computed,
            settings=first.settings,
            totals={key: torch.stack([part.totals[key] for part in parts]).sum(dim=0) for key in first.totals},
        )

    def score(self, row: str, made: Made, truth: UInt8[Tensor, "b f 3 h w"] | None) -> None:
        """Measure all that can be measured of a row; what cannot is noted, not made up."""
        self.settings |= made.settings
        self.values |= {(row, metric): cost.nanmean(dim=1) for metric, cost in made.costs.items()}
        for metric in METRICS.values():
            if made.frames is None or truth is None or metric.group != "image" or metric.measure is None:
                continue
            try:
                values = metric.measure(made.frames, truth)
            except MetricUnavailable as reason:
                self.not_computed[metric.id] = str(reason)
            else:
                self.curves[row, metric.id] = values
                self.values[row, f"{metric.id}_last"] = values[:, -1]
                self.values[row, f"{metric.id}_mean"] = values.mean(dim=1)
