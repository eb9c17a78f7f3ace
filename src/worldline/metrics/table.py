"""Every metric there is: one function each, with its id and what people read.

A new one is a function below `@Metric(...)`: rows, metrics.json, tables, plots and the report follow. Ids stay as they
are.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from torch import Tensor

Measure = TypeVar("Measure", bound=Callable[..., Tensor])


class NotComputed(Exception):  # noqa: N818 - it is no error: tables and report say "not computed: ..."
    """A metric or a row cannot be computed here. The message says why, and what to install or to give."""


def headed(label: str, unit: str) -> str:
    """A label with its unit, if it has one."""
    return f"{label} ({unit})" if unit else label


@dataclass(frozen=True)
class Metric:
    """A number of each clip, and how to print it."""

    id: str
    label: str
    unit: str
    """`dB`, `nats`, `share` (0..1), `deviations` or empty."""
    group: Literal["image", "states", "video", "set", "token"]
    """Computed on each frame, on the states that are read in each frame, on the frames of a clip together, on those of
    all clips together, or on the probabilities of tokens."""
    higher_is_better: bool = True
    target: float | None = None
    """The right value, where more may be too much. Then no row is called the best: a wrong forecast may have it."""
    bound: str | None = None
    """Id of the same cost where each grid is predicted from the true grids before it, for which no forecast is read."""
    sparse: bool = False
    """NaN of a clip that has nothing to measure (say, no hit): such a clip is left out."""
    learned: bool = False
    """Measured by a network, so its function is also given the `Networks`."""
    costly: bool = False
    """Takes so long that of most rows only the last frame is measured (of an `image` metric), or that conditions are
    left out (of a `set`)."""
    meaning: str = ""
    measure: Callable[..., Tensor] | None = None
    """None of what follows from another entry: the last frame and the mean of an image metric, a bound."""

    @property
    def heading(self) -> str:
        """The label with the unit, as tables and charts have it."""
        return headed(self.label, self.unit)

    @property
    def per_frame(self) -> bool:
        """Whether it is a curve over frames, with a number of the last frame and one of all."""
        return self.group in ("image", "states")

    def __call__(self, measure: Measure) -> Measure:
        """Add the metric that a function computes, whose documentation says what it means.

        `image`: predicted and true frames `b f 3 h w` -> `b f`; a curve over frames, and the metrics ID_last and
        ID_mean. `video`: the same frames, and the last context frame `b 3 h w` (None where there is no context) -> `b`.
        `set`: frames of one row or the true ones `b f 3 h w` -> features `b d`, whose Frechet distance is the number.
        `states`: read and given states `b f s`, their scale and which are judged -> `b f`; a curve as `image` is.
        `token`: `Guesses` -> one number per token.
        """
        meaning = (inspect.getdoc(measure) or "").split("\n\n")[0].replace("\n", " ")
        METRICS[self.id] = replace(self, meaning=meaning, measure=measure)

        def also(id: str, what: str, note: str) -> None:
            METRICS[id] = replace(self, id=id, label=f"{self.label}, {what}", meaning=f"{meaning} {note}", bound=None)

        if self.per_frame:
            also(f"{self.id}_last", "last frame", "Of the last predicted frame.")
            also(f"{self.id}_mean", "all frames", "Mean over every predicted frame.")
        if self.bound is not None:
            also(self.bound, "teacher-forced", "Each grid is predicted from the true grids before it: no forecast.")
        return measure

    @property
    def best(self) -> str:
        """Which values are good, as a sign beside the label."""
        return f"→ {self.target:g}" if self.target is not None else "↑" if self.higher_is_better else "↓"


METRICS: dict[str, Metric] = {}
"""By id, in the order of tables."""
