"""Does the forecast show what was commanded? What an inverse-dynamics model reads in it, joint by joint, in its units.

The model errs by itself. So every number stands beside what it errs by on true frames, and joints that it cannot read
there are not judged.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from worldline.evaluation.result import Column, Finding, Line, Table, label_of
from worldline.evaluation.rows import Protocol, Scene
from worldline.evaluation.study import Found, Study, study
from worldline.judges.inverse_dynamics import READABLE
from worldline.metrics.bootstrap import Interval, Weights, statistics
from worldline.metrics.table import NotComputed
from worldline.schema import StateKind

ROWS_READ = ("reconstruction", "forecast", "sample", "shuffled_states", "frozen_states", "copy_last", "unconditional")
"""Rows whose joints are tabled, if they are made, after true frames. Every row has the metric `state_error`."""
JOINTS_OF = (
    *("real", "reconstruction", "forecast", "sample", "copy_last"),
    *("read_states", "mean_state", "first_state"),
)
"""Those that are tabled joint by joint."""
SMALLEST = 1e-5
"""Deviation, or mean move, below which a joint never moves."""
AS_TRUE = 1.5
"""A joint is shown where its error is at most so many times the error on true frames."""
SHOWS, PARTLY = 0.8, 0.4
"""Shares of the readable joints that must be shown for `shows it` and for `shows it partly`."""
UNITS: dict[StateKind, tuple[str, str]] = {
    "angle": ("Angles", "rad"),
    "velocity": ("Velocities", "m/s or rad/s"),
    "binary": ("Closures", "0..1"),
    "other": ("Other states", "own unit"),
}


@study
class InverseDynamicsStudy(Study):
    """Errors of each joint, read from the frames of some rows."""

    id: ClassVar[str] = "inverse_dynamics"
    title: ClassVar[str] = "Does it show what was commanded?"
    of_roll_outs: ClassVar[bool] = True

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b s"]]:
        """Mean absolute error of every joint over the frames of a clip, by row; of true frames what R^2 needs."""
        if scene.reader is None:
            raise NotComputed(scene.no_reader)
        if scene.truth is None or scene.before is None:
            raise NotComputed("the data hold no frames to read states from")
        times = list(scene.forecaster.times)
        true = scene.batch.states[:, times]
        real = scene.states_in(scene.truth)
        found = {"real": (real - true).abs().mean(dim=1)}
        for row in ROWS_READ:
            if row in scene.read:
                given = scene.made[row].states
                asked = true if given is None else given[:, times]
                found[row] = (scene.read[row] - asked).abs().mean(dim=1)
        moved = (true - scene.now[:, None]).double().square().mean(dim=1)
        return found | _moments(real, true) | {"moved": moved}

    def conclude(self, found: Found) -> Finding:
        row = "forecast" if "forecast" in found.measured else "sample"
        spread, shares = spread_of(found.measured, found.episodes)
        judged = [j for j, share in enumerate(shares) if share.mean >= READABLE]
        if not judged:
            raise NotComputed(
                "the inverse-dynamics model reads the moves of no joint well enough from the true frames of these "
                f"clips (R^2 of at least {READABLE:g})"
            )
        means = {name: values.mean(dim=0) for name, values in found.measured.items()}
        shown = [j for j in judged if means[row][j] <= AS_TRUE * means["real"][j]]
        share = len(shown) / len(judged)
        verdict = "shows it" if share >= SHOWS else "shows it partly" if share >= PARTLY else "does not show it"
        rows = ["real", *(one for one in ROWS_READ if one in found.measured)]
        return Finding(
            id=self.id,
            title=self.title,
            verdict=verdict,
            sentence=_sentence(found, row, len(shown), judged),
            tables=(_all(found, rows, judged), *_by_kind(found, judged, spread, shares)),
            notes=(
                "Read from frames by an inverse-dynamics model, which was trained on true clips and errs by itself: "
                "compare with its error on true frames. Each row is compared with the states that it was given.",
                "Counted from the last context frame, whose state is known: what the model misreads there is taken "
                "away. R^2: the share of a joint's moves since then that is read from true frames.",
                f"A joint is shown where its mean error is at most {AS_TRUE:g} times that on true frames; shows it: at "
                f"least {SHOWS:.0%} of the joints; shows it partly: at least {PARTLY:.0%}.",
                *_not_judged(found, judged, shares),
            ),
        )


@study
class ReadableStates(Study):
    """Of a model that reads states, alone: what it reads in true frames, joint by joint, beside guesses."""

    id: ClassVar[str] = "readable_states"
    title: ClassVar[str] = "Which states do pictures show?"
    protocols: ClassVar[Sequence[Protocol]] = ("states",)

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b s"]]:
        true = scene.batch.states[:, list(scene.forecaster.times)]
        errors = {row: (read - true).abs().mean(dim=1) for row, read in scene.read.items()}
        return errors | _moments(scene.read["read_states"], true)

    def conclude(self, found: Found) -> Finding:
        spread, shares = spread_of(found.measured, found.episodes)
        readable = [j for j, share in enumerate(shares) if share.mean >= READABLE]
        every = range(len(shares))
        said = f"It reads {len(readable)} of {len(shares)} states: at least {READABLE:.0%} of their variance."
        if readable:
            numbers = (
                _number(_deviations(found, row, readable)) for row in ("read_states", "mean_state", "first_state")
            )
            said += " Its error on those is {} deviations, {} of the mean state and {} of the first state.".format(
                *numbers
            )
        return Finding(
            id=self.id,
            title=self.title,
            verdict=f"{len(readable)} of {len(shares)}",
            sentence=said,
            tables=tuple(_by_kind(found, list(every), spread, shares)),
            notes=("On held-out true frames; first state: the true state at the first frame of a clip, held.",),
        )


def _moments(read: Tensor, true: Tensor) -> dict[str, Tensor]:
    """What R^2 and deviations are made of: means over the frames of each clip."""
    exact = true.double()
    moments = {"squared": (read - exact).square(), "states": exact, "states2": exact.square()}
    return {name: values.mean(dim=1) for name, values in moments.items()}


def spread_of(measured: Mapping[str, Tensor], episodes: Int64[Tensor, " n"]) -> tuple[list[Interval], list[Interval]]:
    """Of each joint the deviation over all frames of all clips, and R^2 on true frames.

    R^2 is the share that is read of what the joint moved since the last context frame, where that is `measured`; else
    of its variance. 0 of what never moves.
    """
    left, mean, square = (measured[name].double().numpy() for name in ("squared", "states", "states2"))
    moved = measured["moved"].double().numpy() if "moved" in measured else None

    def variances(weights: Weights) -> Float64[np.ndarray, "r s"]:
        total = weights.sum(axis=1, keepdims=True)
        return (weights @ square / total - (weights @ mean / total) ** 2).clip(0)

    def shares(weights: Weights) -> Float64[np.ndarray, "r s"]:
        total = weights.sum(axis=1, keepdims=True)
        whole = variances(weights) if moved is None else weights @ moved / total
        return np.where(whole > SMALLEST**2, 1 - weights @ left / total / whole.clip(SMALLEST**2), 0.0)

    return statistics(lambda weights: np.sqrt(variances(weights)), episodes), statistics(shares, episodes)


def _sentence(found: Found, row: str, shown: int, judged: list[int]) -> str:
    errors = {name: _deviations(found, name, judged) for name in ("real", row, "copy_last") if name in found.measured}
    own, true = _number(errors[row]), _number(errors["real"])
    copied = f", {_number(errors['copy_last'])} for a copy of the last frame" if "copy_last" in errors else ""
    subject = "The forecast" if row == "forecast" else "One sample"
    return (
        f"{subject} shows {shown} of {len(judged)} readable joints (of {len(found.state_names)}) within {AS_TRUE:g} "
        f"times the error on true frames: {own} deviations on average, {true} on true frames{copied}."
    )


def _number(value: Interval | None) -> str:
    return "-" if value is None else f"{value.mean:.2f}"


def _deviations(found: Found, row: str, judged: list[int]) -> Interval | None:
    """The mean error of the judged joints, in their deviations."""
    assert found.judged.reader is not None, "measured with it"
    errors = found.measured[row] / found.judged.reader.scale
    return found.interval(errors[:, judged].mean(dim=1))


def _all(found: Found, rows: list[str], judged: list[int]) -> Table:
    lines = tuple(Line(_label(row), (_deviations(found, row, judged),)) for row in rows)
    return Table(title="All readable joints", columns=(Column("error", "deviations"),), lines=lines)


def _label(row: str) -> str:
    return "true frames" if row == "real" else label_of(row)


def _by_kind(found: Found, judged: list[int], spread: list[Interval], shares: list[Interval]) -> list[Table]:
    """One table for each kind of state, whose unit is that of its numbers, in the order of the layout."""
    assert found.judged.reader is not None, "measured with it"
    rows, tables = [row for row in JOINTS_OF if row in found.measured], []
    for kind, (title, unit) in UNITS.items():
        joints = [j for j in judged if found.judged.reader.kinds[j] == kind]
        columns = (*(Column(_label(row), unit) for row in rows), Column("deviation", unit), Column("R^2"))
        lines = (
            Line(
                found.state_names[j],
                (*(found.interval(found.measured[row][:, j]) for row in rows), spread[j], shares[j]),
            )
            for j in joints
        )
        if joints:
            tables.append(Table(title=f"{title}: error", columns=columns, lines=tuple(lines)))
    return tables


def _not_judged(found: Found, judged: list[int], shares: list[Interval]) -> list[str]:
    others = [f"{name} ({shares[j].mean:.2f})" for j, name in enumerate(found.state_names) if j not in judged]
    if not others:
        return []
    return [
        "Not judged, because the model does not read their moves in the true frames of these clips: "
        f"{', '.join(others)}. In brackets R^2; {READABLE:g} are needed."
    ]
