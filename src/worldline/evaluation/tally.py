"""Numbers per clip, gathered batch by batch: what an evaluation adds up before it averages.

Knows metrics, not models: who predicted what is only a row's name.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from worldline.metrics.image import MetricUnavailable
from worldline.metrics.table import METRICS, token_costs
from worldline.metrics.tokens import Guesses, per_clip

_rows = partial(defaultdict, partial(defaultdict, list))  # a function written here could not go to another process


@dataclass
class Tally:
    """Numbers per clip, gathered batch by batch: `values[row][metric]` and `curves[metric][row]` are lists."""

    values: dict[str, dict[str, list[Tensor]]] = field(default_factory=_rows)
    curves: dict[str, dict[str, list[Tensor]]] = field(default_factory=_rows)
    shown: dict[str, list[UInt8[Tensor, "t 3 h w"]]] = field(default_factory=partial(defaultdict, list))
    episodes: list[int] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
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
        self.totals |= {name: self.totals.get(name, 0) + value for name, value in later.totals.items()}

    def add_frames(self, name: str, predicted: UInt8[Tensor, "b t 3 h w"], truth: UInt8[Tensor, "b t 3 h w"]) -> None:
        """Score predicted frames of a row; a metric whose packages are missing is noted, not made up."""
        for metric in METRICS.values():
            if metric.group != "image" or metric.measure is None:
                continue
            try:
                values = metric.measure(predicted, truth)
            except MetricUnavailable as reason:
                self.not_computed[metric.id] = str(reason)
                continue
            self.curves[metric.id][name].append(values)
            self.values[name][f"{metric.id}_last"].append(values[:, -1])
            self.values[name][f"{metric.id}_mean"].append(values.mean(dim=1))


class TokenScores:
    """What true tokens cost under each predicted grid's logits, which are dropped at once."""

    def __init__(self, future: Int64[Tensor, "b l h w"]) -> None:
        self.future = future
        self.grids: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in range(future.shape[1])]
        self.scored = [0] * future.shape[1]

    def note(self, index: int, guesses: Guesses, count: int) -> None:
        """Take what was guessed of grid `index` of the next `count` clips."""
        self.scored[index] += count
        for name, cost in token_costs(guesses).items():
            self.grids[index][name].append(per_clip(cost, count).cpu())

    def into(self, values: dict[str, list[Tensor]]) -> None:
        """Append the mean over grids under the ids of the metrics."""
        for name in self.grids[0]:
            values[name].append(torch.stack([torch.cat(grid[name]) for grid in self.grids]).nanmean(dim=0))
