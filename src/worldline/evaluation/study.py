"""A study: further measurements of the forecasts, and what they mean in one sentence.

Rows and metrics are numbers of a table. A study answers a question (does the world follow the robot? can its sureness
be trusted?): it measures what it needs on each batch, beside the rows that are made anyway, and concludes of all clips
together. A new one is a class below `@study` in `worldline.evaluation.studies`: metrics.json, tables and report follow.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from worldline.evaluation.result import Curve, Finding
from worldline.evaluation.rows import Judged, Protocol, Scene
from worldline.metrics.bootstrap import Interval, interval

Numbers = dict[str, dict[str, Tensor]]
"""Row -> metric -> one number per clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was measured of all clips, in order."""

    judged: Judged
    measured: Mapping[str, Float[Tensor, "n ..."]]
    """By the study itself."""
    scores: Mapping[tuple[str, str], Float[Tensor, "n f"]]
    """(row, metric) -> a number for each clip and predicted frame (of costs: token grid)."""
    numbers: Numbers
    """The same for each clip: `psnr_db_last`, `psnr_db_mean`, `full_ce`."""
    episodes: Int64[Tensor, " n"]
    forecast: str
    """Id of the row that the others are compared with."""
    alike: str
    """Id of the row that conditions are compared with: as many samples, from the same noise."""
    fps: float
    """Frames per second that the predicted times count."""
    state_names: tuple[str, ...]

    def interval(self, values: Float[Tensor, " n"]) -> Interval | None:
        """The mean over clips with its interval over episodes; NaN clips are left out. None where all are."""
        known = ~values.isnan()
        return interval(values[known], self.episodes[known]) if known.any() else None

    def minus(self, metric: str, one: str, other: str) -> Interval | None:
        """The paired difference of two rows in a metric; None where one of them lacks it."""
        first, second = (self.numbers.get(row, {}).get(metric) for row in (one, other))
        return None if first is None or second is None else self.interval(first.double() - second.double())

    def curve(self, label: str, columns: Mapping[float, Float[Tensor, " n"]]) -> Curve | None:
        """The intervals of numbers of each clip, by their place on the axis; None where there is not one."""
        points = {x: value for x, values in columns.items() if (value := self.interval(values))}
        return Curve(label, tuple(points), tuple(points.values())) if points else None

    @property
    def seconds(self) -> list[float]:
        """When each predicted frame is, from the last frame seen."""
        forecaster = self.judged.forecaster
        return [(time + 1 - forecaster.context_frames) / self.fps for time in forecaster.times]


@dataclass(frozen=True, eq=False)
class Map:
    """How unsure the forecast was of each place of each predicted frame: larger where it was less sure."""

    label: str
    unit: str
    values: Float[Tensor, "b f y x"]
    """`y x x` is the image's size, or coarser (a token grid)."""


class Study(ABC):
    """One question. `measure` depends on the batch alone, so numbers do not depend on ranks and interruptions."""

    id: ClassVar[str]
    title: ClassVar[str]
    protocols: ClassVar[Sequence[Protocol]] = ("compression", "sampling")
    of_roll_outs: ClassVar[bool] = False
    """Whether it is measured beyond one window, too (`--horizon`)."""

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b ..."]]:
        """Measure a batch, whose rows are made (`scene.made`): the same names for every batch, NaN where there is none.

        Raises:
            NotComputed: it cannot be measured here, and why.
        """
        del scene
        return {}

    def maps(self, scene: Scene) -> Mapping[str, Map]:
        """Pictures of a batch for the report, by id; of a few clips they are kept."""
        del scene
        return {}

    @abstractmethod
    def conclude(self, found: Found) -> Finding:
        """Say what was found. Raises `NotComputed` where the clips do not suffice."""


STUDIES: dict[str, Study] = {}
"""By id, in the order in which they are shown."""


def study(kind: type[Study]) -> type[Study]:
    """Add a study to every evaluation."""
    STUDIES[kind.id] = kind()
    return kind


def studies_of(protocol: Protocol) -> list[Study]:
    """The studies that a protocol has, in the order in which they are shown."""
    return [one for one in STUDIES.values() if protocol in one.protocols]


def only_few(scene: Scene, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of the clips `scene.few`, as values of all clips of the batch: NaN for the others."""
    count, found = len(scene.batch), {}
    for name, some in values.items():
        found[name] = torch.full((count, *some.shape[1:]), torch.nan, dtype=some.dtype)
        found[name][scene.few] = some
    return found
