"""Every metric there is: one function each, with its id and what people read.

A new one is a function below `metric`: rows, metrics.json, tables, plots and the report follow. Ids stay as they are.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from torch import Tensor

Measure = TypeVar("Measure", bound=Callable[..., Tensor])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of each clip, and how to print it."""

    id: str
    label: str
    unit: str
    """`dB`, `nats`, `share` (0..1) or empty."""
    group: Literal["image", "token"]
    """Computed on frames, or on the probabilities of tokens."""
    meaning: str
    measure: Callable[..., Tensor] | None
    """None of what follows from another entry: the last frame and the mean of an image metric, a bound."""
    higher_is_better: bool
    bound: str | None
    """Id of the same cost where each grid is predicted from the true grids before it, for which no forecast is read."""
    sparse: bool
    """NaN of a clip that has nothing to measure (say, no hit): such a clip is left out."""


METRICS: dict[str, Metric] = {}
"""By id, in the order of tables."""


def metric(
    id: str,
    label: str,
    unit: str,
    group: Literal["image", "token"],
    *,
    higher_is_better: bool = True,
    bound: str | None = None,
    sparse: bool = False,
) -> Callable[[Measure], Measure]:
    """Make a metric of the function below, whose documentation says what it means.

    `image`: predicted and true frames `b f 3 h w` -> `b f`; a curve over frames, and the metrics ID_last and ID_mean.
    `token`: `Guesses` -> one number per token.
    """

    def added(measure: Measure) -> Measure:
        one = Metric(
            id=id,
            label=label,
            unit=unit,
            group=group,
            meaning=(inspect.getdoc(measure) or "").split("\n\n")[0].replace("\n", " "),
            measure=measure,
            higher_is_better=higher_is_better,
            bound=bound,
            sparse=sparse,
        )

        def also(name: str, what: str, note: str) -> None:
            meaning = f"{one.meaning} {note}"
            METRICS[name] = replace(one, id=name, label=f"{label}, {what}", meaning=meaning, measure=None, bound=None)

        METRICS[id] = one
        if group == "image":
            also(f"{id}_last", "last frame", "Of the last predicted frame.")
            also(f"{id}_mean", "all frames", "Mean over every predicted frame.")
        if bound is not None:
            also(bound, "teacher-forced", "Each grid is predicted from the true grids before it: a bound, no forecast.")
        return measure

    return added
