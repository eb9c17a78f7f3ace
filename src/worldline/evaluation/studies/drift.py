"""How far ahead is it right? What a forecast loses over time, beside a copy, and whether it moves as the truth does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from worldline.evaluation.result import Chart, Column, Finding, Line, Table, label_of
from worldline.evaluation.rows import Scene
from worldline.evaluation.study import Found, Study, study
from worldline.metrics.bootstrap import Interval
from worldline.metrics.image import STILL, changes
from worldline.metrics.table import METRICS, NotComputed

COMPARED = ("shuffled_states", "unconditional", "copy_last")
BESIDE = ("sample", *COMPARED, "true_contexts", "live_twin", "reconstruction")
"""Rows beside the forecast, where they are there."""
DRAWN = ("psnr_db", "ssim", "lpips")
WIDTHS = (1.0, 0.5, 0.2, 0.1)
"""Seconds of a stretch of time: the first by which a horizon has at least `FEWEST` of them."""
FEWEST = 4


@dataclass(frozen=True)
class Stretches:
    """A horizon in stretches of time."""

    places: tuple[tuple[int, ...], ...]
    """The predicted frames of each, by their places; none is empty."""
    begins: tuple[float, ...]
    """Seconds from the last frame seen."""
    ends: tuple[float, ...]
    middles: tuple[float, ...]
    """Mean time of the frames of each, in seconds."""

    @staticmethod
    def of(seconds: Sequence[float]) -> "Stretches":
        """Of predicted frames at these times; a frame at exactly 1 s is the last of the first second."""
        width = next((one for one in WIDTHS if round(seconds[-1] / one, 6) >= FEWEST), WIDTHS[-1])
        numbers = [max(0, math.ceil(round(second / width, 6)) - 1) for second in seconds]
        places = {one: tuple(i for i, number in enumerate(numbers) if number == one) for one in numbers}
        return Stretches(
            places=tuple(places.values()),
            begins=tuple(number * width for number in places),
            ends=tuple(min((number + 1) * width, seconds[-1]) for number in places),
            middles=tuple(sum(seconds[i] for i in some) / len(some) for some in places.values()),
        )

    def means(self, values: Float[Tensor, "n f"]) -> Float[Tensor, "n s"]:
        """Of each clip, in double precision."""
        return torch.stack([values[:, list(some)].double().mean(dim=1) for some in self.places], dim=1)

    def slope(self, values: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
        """Change per second along a straight line (least squares) through the stretches of each clip; NaN of one."""
        middles = torch.tensor(self.middles, dtype=torch.float64)
        apart = middles - middles.mean()
        return (values.double() @ apart) / (apart.square().sum() if len(apart) > 1 else math.nan)

    def motion(self, own: Float[Tensor, "n f"], real: Float[Tensor, "n f"]) -> Float[Tensor, "n s"]:
        """Change of the frames of each clip against that of the true ones; NaN where the truth stands still."""
        ours, truth = self.means(own), self.means(real)
        return (ours / truth).masked_fill(truth < STILL, math.nan)

    @property
    def names(self) -> list[str]:
        return [f"{begin:.2g} to {end:.3g} s" for begin, end in zip(self.begins, self.ends, strict=True)]

    def span(self, differences: Sequence[Interval | None]) -> str | None:
        """Where differences are above zero with their whole interval, in words; None for nowhere."""
        good = [one is not None and one.low > 0 for one in differences]
        if not any(good):
            return None
        first, last, count = good.index(True), len(good) - good[::-1].index(True) - 1, sum(good)
        if count == len(good):
            return f"for all {self.ends[-1]:.3g} s"
        if count == last - first + 1 and first == 0:
            return f"for the first {self.ends[last]:.3g} of {self.ends[-1]:.3g} s"
        if count == last - first + 1 and last == len(good) - 1:
            return f"from {self.begins[first]:.3g} s on, of {self.ends[-1]:.3g} s"
        return f"in {count} of {len(good)} stretches, the last of which ends after {self.ends[last]:.3g} s"


@study
class Drift(Study):
    """Quality by stretches of time, to whatever horizon is evaluated."""

    id: ClassVar[str] = "drift"
    title: ClassVar[str] = "How far ahead?"
    of_roll_outs: ClassVar[bool] = True

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b f"]]:
        """Of the truth and of rows: how much each frame differs from the one before it, in grey levels."""
        if (truth := scene.truth) is None:
            raise NotComputed("the data hold tokens only, no frames")
        shown = {"truth": truth}
        for row, made in scene.made.items():
            if made.frames is not None and (row in BESIDE or row == next(iter(scene.made))):
                shown[row] = made.frames
        return {row: changes(frames, scene.before) for row, frames in shown.items()}

    def conclude(self, found: Found) -> Finding:
        stretches, forecast = Stretches.of(found.seconds), found.forecast
        if (row := "copy_last") not in found.numbers:
            raise NotComputed("there is no copy of the last frame to compare with")
        ahead = _differences(found, stretches, forecast, row)
        said = [_beats(ahead, stretches), _loses(found, stretches), _moves(found), _helped(found, stretches)]
        rows = (forecast, *(row for row in BESIDE if row in found.measured and row != forecast))
        return Finding(
            id=self.id,
            title=self.title,
            verdict=verdict_of(ahead),
            sentence="; ".join(one for one in said if one) + ".",
            tables=(_in_all(found, stretches, rows), _by_stretch(found, stretches, rows, ahead)),
            charts=tuple(_charts(found, stretches, rows)),
            notes=_NOTES,
        )


_NOTES = (
    "A stretch of time is the mean of its frames, then the mean over clips. Beats a copy: the whole interval of the "
    "paired difference in PSNR is above zero. Loss: the slope of a straight line through the stretches of each clip.",
    "Motion: how much frames change from one to the next, divided by how much the true ones do: 1 is right, and a "
    "frozen video has 0. Clips whose truth stands still have none. A mean of samples moves less than each of them.",
)


def verdict_of(ahead: Sequence[Interval | None]) -> str:
    """`beats a copy`, `beats it in part`, `no better`, `worse` or `undecided`, of all differences to a copy."""
    known = [one for one in ahead if one is not None and not math.isnan(one.low)]
    if not known:
        return "undecided"  # with one episode there is no interval, and nothing is claimed
    if all(one.low > 0 for one in known):
        return "beats a copy"
    if any(one.low > 0 for one in known):
        return "beats it in part"
    return "worse" if all(one.high < 0 for one in known) else "no better"


def _beats(ahead: Sequence[Interval | None], stretches: Stretches) -> str:
    verdict, span = verdict_of(ahead), stretches.span(ahead)
    if verdict == "undecided":
        return "One episode does not tell how far ahead the forecast beats a copy of the last frame"
    if span is not None:
        return f"Beats a copy of the last frame {span}"
    return "A copy of the last frame is better throughout" if verdict == "worse" else "Beats no copy of the last frame"


def _loses(found: Found, stretches: Stretches) -> str:
    value = found.interval(-stretches.slope(stretches.means(found.scores[found.forecast, "psnr_db"])))
    if value is None:
        return ""
    lost = round(value.mean, 2)
    return f"{'loses' if lost >= 0 else 'gains'} {abs(lost):.2f} dB a second"


def _moves(found: Found) -> str:
    sampled = "sample" in found.numbers
    numbers = found.numbers["sample" if sampled else found.forecast].get("motion")
    value = None if numbers is None else found.interval(numbers)
    if value is None:
        return "the truth stands still"
    return f"{'a sample ' if sampled else ''}moves {value.mean:.2f}x as much as the truth"


def _helped(found: Found, stretches: Stretches) -> str:
    """How far ahead the true states are worth something."""
    if "shuffled_states" not in found.numbers:
        return ""
    differences = _differences(found, stretches, found.alike, "shuffled_states")
    if verdict_of(differences) == "undecided":
        return ""
    span = stretches.span(differences)
    return "another clip's states do as well" if span is None else f"better than with another clip's states {span}"


def _differences(found: Found, stretches: Stretches, one: str, other: str) -> list[Interval | None]:
    """Paired, in PSNR, of each stretch."""
    first, second = (stretches.means(found.scores[row, "psnr_db"]) for row in (one, other))
    return [found.interval(values) for values in (first - second).unbind(dim=1)]


def _in_all(found: Found, stretches: Stretches, rows: Sequence[str]) -> Table:
    lines = []
    for row in rows:
        values = stretches.means(found.scores[row, "psnr_db"])
        motion = found.numbers[row].get("motion")
        numbers = values[:, 0], values[:, -1], -stretches.slope(values)
        moved = None if motion is None else found.interval(motion)
        lines.append(Line(label_of(row), (*map(found.interval, numbers), moved)))
    first, *_, last = (*stretches.names, stretches.names[-1])
    columns = Column(f"PSNR, {first}", "dB"), Column(f"PSNR, {last}", "dB"), Column("loses", "dB/s"), Column("motion")
    return Table(title="From first to last", columns=columns, lines=tuple(lines))


def _by_stretch(found: Found, stretches: Stretches, rows: Sequence[str], ahead: Sequence[Interval | None]) -> Table:
    """One line for each stretch of time: PSNR of what is forecast and of what it is compared with, and motion."""
    shown = [row for row in rows if row == found.forecast or row in COMPARED]
    columns = [[*map(found.interval, stretches.means(found.scores[row, "psnr_db"]).unbind(dim=1))] for row in shown]
    columns += [[*ahead], [*map(found.interval, _motion(found, stretches, found.forecast).unbind(dim=1))]]
    heads = (*(Column(label_of(row), "dB") for row in shown), Column("minus copy-last", "dB"), Column("motion"))
    lines = tuple(Line(name, tuple(own)) for name, *own in zip(stretches.names, *columns, strict=True))
    return Table(title="PSNR over time", columns=heads, lines=lines)


def _motion(found: Found, stretches: Stretches, row: str) -> Float[Tensor, "n s"]:
    return stretches.motion(found.measured[row], found.measured["truth"])


def _charts(found: Found, stretches: Stretches, rows: Sequence[str]) -> list[Chart]:
    charts = []
    for metric in (METRICS[one] for one in DRAWN if one in METRICS and (rows[0], one) in found.scores):
        there = {row: stretches.means(found.scores[row, metric.id]) for row in rows if (row, metric.id) in found.scores}
        charts.append(_chart(f"{metric.label} over time", metric.heading, found, stretches, there))
    moved = {row: _motion(found, stretches, row) for row in rows}
    return [*charts, _chart("Motion over time", METRICS["motion"].label, found, stretches, moved)]


def _chart(
    title: str, y_label: str, found: Found, stretches: Stretches, rows: Mapping[str, Float[Tensor, "n s"]]
) -> Chart:
    columns = {row: dict(zip(stretches.middles, values.unbind(dim=1), strict=True)) for row, values in rows.items()}
    curves = tuple(one for row, own in columns.items() if (one := found.curve(label_of(row), own)))
    return Chart(title=title, x_label="seconds ahead", y_label=y_label, curves=curves)
