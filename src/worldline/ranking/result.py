"""The result of a ranking: success rates, how well their order agrees with the truth, and what they stand on.

`ranking/ranking.json` of a run folder, with a checksum over its content, and `ranking/films.npz` beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from pydantic import TypeAdapter

from worldline.files import read_npz, read_sealed, write_npz, write_sealed
from worldline.metrics.bootstrap import Interval, NumberOrNull
from worldline.metrics.ranking import Agreement, Statistic
from worldline.rundir import from_json
from worldline.schema import DataError

FOLDER, FILE, FILMS = "ranking", "ranking.json", "films.npz"
PHYSICS, COUNTS, TWIN, WORLD = "physics", "counts", "twin", "world"
"""Ids of the columns of success rates that have one; others are ids of places."""
_AGAIN = "Rank again; the file is not meant to be edited."


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often a policy succeeded."""

    successes: int
    trials: int
    low: NumberOrNull
    """The 95 % interval (Wilson); NaN without trials, like `high`."""
    high: NumberOrNull
    over_tasks: float | None = None
    """The mean of several tasks' rates, which weigh the same however many trials each had; None of one task."""

    @property
    def value(self) -> float:
        if self.over_tasks is not None:
            return self.over_tasks
        return self.successes / self.trials if self.trials else float("nan")


@dataclass(frozen=True, kw_only=True)
class Against:
    """How well success rates agree with those that are taken as the truth here, over the policies that have both."""

    found: str
    true: str
    k: int
    starts: int
    agreements: tuple[Agreement, ...]
    bias: Interval
    """Mean of found minus true: above 0 is optimistic. Its interval is over starts, with these policies."""
    mae: Interval
    """Mean absolute error of the rates, likewise."""
    same: NumberOrNull = float("nan")
    """Share of the episodes, from one start each, whose outcome is the same; NaN where the truth has other trials."""

    def agreement(self, statistic: Statistic) -> Agreement:
        return next(one for one in self.agreements if one.statistic == statistic)


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """The same among the episodes that are trusted most, by the signal per motion."""

    coverage: float
    """Share of all episodes that are kept."""
    episodes: int
    against: Against | None
    """None where fewer than two policies have enough episodes left."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well success is read from frames, beside physics."""

    place: str
    """`twin`: true frames; `replayed`: frames that the world imagined of the twin's own commands."""
    episodes: int
    successes: int
    """By physics."""
    accuracy: Interval
    auroc: Interval
    optimism: Interval
    """Share of the failures that are read as successes."""
    missed: Interval
    """Share of the successes that are read as failures."""


@dataclass(frozen=True, kw_only=True)
class TaskRanking:
    """A task: a list of policies, and everything about them in the same order."""

    id: str
    label: str
    starts: int
    seconds: NumberOrNull
    """Length of an episode."""
    policies: tuple[str, ...]
    rates: dict[str, tuple[Rate, ...]]
    """By column: `physics` or `counts`, `twin` (read from true frames), `world`, and each further place."""
    against: tuple[Against, ...]
    trusted: tuple[Trusted, ...] = ()
    readings: tuple[Reading, ...] = ()
    gap: dict[str, float] = field(default_factory=dict)
    """Kind of state -> mean absolute difference of what was commanded and what was reached in the twin."""
    outside: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By place (`twin`, `world`), for each policy: actions of which a number was outside of the range of the world's
    training states; empty where that range is not known. What became of them is `Ranking.settings["out_of_range"]`."""
    actions: int = 0
    """Of each policy at each of these places."""

    def of(self, found: str, true: str | None = None) -> Against | None:
        """How a column agrees with the truth, or with another column."""
        true = true or self.truth
        return next((one for one in self.against if (one.found, one.true) == (found, true)), None)

    @property
    def truth(self) -> str:
        """The column that is taken as the truth."""
        return COUNTS if COUNTS in self.rates else PHYSICS


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A policy that did what none may do: it is in no list of its task."""

    policy: str
    task: str
    place: str
    said: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What decided the numbers, for who wants them again."""

    command: str
    commit: str
    code: str
    """Hash of all source files of the package."""
    world: str
    """Signature of the forecaster: its settings and weights."""
    reader: str
    policies: dict[str, str]
    """Label, behind its task where it is of one -> identity."""
    seeds: dict[str, tuple[int, ...]]
    """Task -> the seeds of its starts."""
    environment: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The complete result."""

    world: str
    labels: dict[str, str]
    """Column -> what people read."""
    tasks: tuple[TaskRanking, ...]
    overall: TaskRanking | None
    """The policies that are in all of several tasks: their mean rates over tasks."""
    signal: str | None
    """By which episodes are trusted."""
    reader: str
    """Who reads success from frames."""
    failures: tuple[Failure, ...]
    not_computed: dict[str, str]
    """Id of a column, or of a part -> why."""
    settings: dict[str, Any]
    provenance: Provenance
    seconds: float
    """Of playing, all processes and interruptions together."""
    fps: NumberOrNull = float("nan")
    """Frames per second of the films."""
    format: Literal[1] = 1

    def write(self, folder: Path) -> Path:
        """Write it atomically, with a checksum; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / FILE, json.loads(TypeAdapter(Ranking).dump_json(self)))  # NaN becomes null
        return folder / FILE

    @staticmethod
    def load(path: Path) -> "Ranking":
        """Read what `write` wrote. Raises `DataError` where it is absent, damaged or edited."""
        return from_json(Ranking, read_sealed(path, fix=_AGAIN), path)


# --- films ---


class Film(NamedTuple):
    """One start, as every policy played it: twin (where there is one) and world."""

    task: str
    start: str
    policies: tuple[str, ...]
    twin: UInt8[np.ndarray, "k t h w 3"] | None
    world: UInt8[np.ndarray, "k t h w 3"]


def write_films(folder: Path, films: tuple[Film, ...]) -> None:
    """Write them into one file, atomically."""
    arrays: dict[str, Any] = {"tasks": np.array([film.task for film in films], dtype=np.str_)}
    arrays["starts"] = np.array([film.start for film in films], dtype=np.str_)
    for number, film in enumerate(films):
        arrays |= {f"policies_{number}": np.array(film.policies, dtype=np.str_), f"world_{number}": film.world}
        if film.twin is not None:
            arrays[f"twin_{number}"] = film.twin
    write_npz(folder / FILMS, arrays)


def read_films(path: Path) -> tuple[Film, ...]:
    """Read what `write_films` wrote. Raises `DataError` where it is damaged."""
    arrays = read_npz(path, what="films of a ranking", fix=_AGAIN)
    try:
        return tuple(_film(arrays, number, str(task)) for number, task in enumerate(arrays["tasks"]))
    except KeyError as error:
        expected = "arrays tasks, starts, policies_N, world_N and, with a twin, twin_N"
        raise DataError(path, expected=expected, found=f"no {error.args[0]}", fix=_AGAIN) from error


def _film(arrays: Mapping[str, np.ndarray], number: int, task: str) -> Film:
    policies = tuple(str(one) for one in arrays[f"policies_{number}"])
    twin = arrays.get(f"twin_{number}")
    return Film(task, str(arrays["starts"][number]), policies, twin, arrays[f"world_{number}"])
