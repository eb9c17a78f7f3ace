"""Numbers per clip, gathered batch by batch: what an evaluation adds up before it averages.

Knows metrics, not models: who predicted what is only a row's name.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Int64, UInt8
from torch import Tensor

from worldline.metrics.bootstrap import Interval, interval
from worldline.metrics.codes import CodeLengths, per_clip, top_k_code_lengths
from worldline.metrics.image import MetricUnavailable, psnr, ssim
from worldline.worlds.world import GridStep

CODE_NAMES = {  # field of CodeLengths -> metric of a forecast, metric of the teacher-forced bound
    "residual": ("top500_ce_residual", "teacher_forced_top500_ce"),
    "floor": ("top500_ce_floor", None),
    "hits_only": ("top500_ce_hits_only", None),
    "covered": ("top500_coverage", None),
    "full_ce": ("full_ce", "teacher_forced_ce"),
    "correct": ("token_accuracy", "teacher_forced_accuracy"),
}


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
        for metric, measure in (("psnr_db", psnr), ("ssim", ssim)):
            try:
                values = measure(predicted, truth)
            except MetricUnavailable as reason:
                self.not_computed[metric] = str(reason)
                continue
            self.curves[metric][name].append(values)
            self.values[name][f"{metric}_last"].append(values[:, -1])
            self.values[name][f"{metric}_mean"].append(values.mean(dim=1))


class CodeScores:
    """Code lengths of the true tokens under each predicted grid's logits, which are dropped at once."""

    def __init__(self, future: Int64[Tensor, "b l h w"]) -> None:
        self.future = future
        self.grids: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in range(future.shape[1])]
        self.scored = [0] * future.shape[1]

    def add(self, index: int, step: GridStep) -> None:
        """Score grid `index` of the next few clips."""
        first, count = self.scored[index], len(step.tokens)
        logits = rearrange(step.logits, "b h w v -> (b h w) v")
        truth = self.future[first : first + count, index].flatten().to(logits.device)
        self.note(index, top_k_code_lengths(logits, truth), count)

    def note(self, index: int, lengths: CodeLengths, count: int) -> None:
        """Take the costs of grid `index` of the next `count` clips as they are."""
        self.scored[index] += count
        for name, value in per_clip(lengths, count).items():
            self.grids[index][name].append(value.cpu())

    def into(self, values: dict[str, list[Tensor]], which: int) -> None:
        """Append the mean over grids under the names of forecasts (0) or of the teacher-forced bound (1)."""
        for name, names in CODE_NAMES.items():
            metric = names[which]
            if metric is not None:
                values[metric].append(torch.stack([torch.cat(grid[name]) for grid in self.grids]).nanmean(dim=0))


def code_intervals(values: dict[str, Tensor], episodes: Int64[Tensor, " n"]) -> dict[str, Interval]:
    """Average each metric over clips, with its interval over episodes."""
    found = {}
    for metric, numbers in values.items():
        # A clip without a single hit has no cost of its hits; every other metric of it is a number.
        known = ~numbers.isnan() if metric == CODE_NAMES["hits_only"][0] else torch.ones_like(numbers).bool()
        if known.any():
            found[metric] = interval(numbers[known], episodes[known])
    return found
