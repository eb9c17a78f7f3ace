"""From outcomes of episodes to what is said of them. Knows no forecaster and no policy.

An outcome is whether a policy succeeded from a start, as one column says: physics, or a reader of the pictures of one
place. All columns of a task are about the same policies and starts, so they are compared in pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from worldline.metrics.bootstrap import Interval, statistics
from worldline.metrics.ranking import MEASURES, Agreement, agree, bias, mae, over_counts, over_starts, wilson
from worldline.metrics.uncertainty import auroc
from worldline.ranking.result import COUNTS, PHYSICS, TWIN, WORLD, Against, Rate, Reading, TaskRanking, Trusted

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Shares of the episodes that are trusted."""
ENOUGH = 3
"""Trusted episodes that a policy needs to be in a list."""
REPLAYED = "replayed"
Outcomes = Bool[np.ndarray, "k n"]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A policy's successes where they were counted and no start is known."""

    successes: int
    trials: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Everything that was found of a task, rows being policies. Columns of fewer starts are of the first of them."""

    id: str
    label: str
    seconds: float
    policies: tuple[str, ...]
    columns: dict[str, Outcomes]
    """Whether each policy succeeded: `physics`, `twin`, `world`, ..."""
    counts: tuple[tuple[Counted, ...], ...] = ()
    """In place of physics: of each policy one of each task."""
    chances: dict[str, Float64[np.ndarray, "k n"]] = field(default_factory=dict)
    """Of success, as the reader gave them: by place."""
    doubt: Float64[np.ndarray, "k n"] | None = None
    """Of the world's episodes: larger is to be trusted less."""
    gap: dict[str, float] = field(default_factory=dict)
    outside: dict[str, Int[np.ndarray, " k"]] = field(default_factory=dict)
    """By place, where policies act: actions of each of which a number was outside of the data's range."""
    actions: int = 0
    """Of each policy at such a place."""

    @property
    def truth(self) -> str:
        return COUNTS if self.counts else PHYSICS


def conclude(found: Outcome) -> TaskRanking:
    """All that is said of a task."""
    rates = {name: _rates(column) for name, column in found.columns.items() if name != REPLAYED}
    if found.counts:
        rates = {COUNTS: tuple(map(_counted_rate, found.counts))} | rates
    against = [_against(found, name, found.truth) for name in rates if name != found.truth]
    if TWIN in rates:
        against += [_against(found, name, TWIN) for name in rates if name not in (PHYSICS, TWIN)]
    readings = [_reading(found, place) for place in (TWIN, REPLAYED) if place in found.chances and not found.counts]
    return TaskRanking(
        id=found.id,
        label=found.label,
        starts=max(column.shape[1] for column in found.columns.values()),
        seconds=found.seconds,
        policies=found.policies,
        rates=rates,
        against=tuple(against),
        trusted=() if found.doubt is None else tuple(_trusted(found, found.doubt, share) for share in COVERAGES),
        readings=tuple(readings),
        gap=found.gap,
        outside={name: tuple(counts.tolist()) for name, counts in found.outside.items()},
        actions=found.actions,
    )


def over_tasks(found: Sequence[Outcome]) -> Outcome | None:
    """The policies that are in all of several tasks, with the episodes of all; None where fewer than two are.

    A column counts where every task has it; each task gives as many starts as the others, so tasks weigh the same. They
    take turns, so that of columns of fewer starts the first of all tasks are compared.
    """
    first = found[0] if found else None
    if first is None or len(found) < 2:
        return None
    common = tuple(label for label in first.policies if all(label in one.policies for one in found))
    if len(common) < 2 or len({bool(one.counts) for one in found}) > 1:
        return None
    tasks = [_only(one, common) for one in found]
    columns = {name: _beside([one.columns for one in tasks], name) for name in first.columns}
    chances = {name: _beside([one.chances for one in tasks], name) for name in first.chances}
    doubts = [{} if one.doubt is None else {WORLD: one.doubt} for one in tasks]
    gaps = {kind: float(np.mean([one.gap[kind] for one in tasks if kind in one.gap])) for kind in first.gap}
    return Outcome(
        id="all",
        label="all tasks",
        seconds=math.nan,
        policies=common,
        columns={name: column for name, column in columns.items() if column is not None},
        counts=tuple(sum(own, ()) for own in zip(*(one.counts for one in tasks), strict=True)),
        chances={name: column for name, column in chances.items() if column is not None},
        doubt=_beside(doubts, WORLD),
        gap=gaps,
        outside={
            name: np.sum([one.outside[name] for one in tasks], axis=0)
            for name in first.outside
            if all(name in one.outside for one in tasks)
        },
        actions=sum(one.actions for one in tasks),
    )


def _only(found: Outcome, policies: Sequence[str]) -> Outcome:
    rows = [found.policies.index(label) for label in policies]
    return replace(
        found,
        policies=tuple(policies),
        columns={name: column[rows] for name, column in found.columns.items()},
        chances={name: column[rows] for name, column in found.chances.items()},
        counts=tuple(found.counts[row] for row in rows) if found.counts else (),
        doubt=None if found.doubt is None else found.doubt[rows],
        outside={name: counts[rows] for name, counts in found.outside.items()},
    )


def _beside(tasks: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray | None:
    held = [one[name] for one in tasks if name in one]
    if len(held) < len(tasks):
        return None
    fewest = min(column.shape[1] for column in held)
    return np.stack([column[:, :fewest] for column in held], axis=2).reshape(len(held[0]), -1)


# --- parts ---


def rate(successes: int, trials: int) -> Rate:
    """A success rate with its interval."""
    low, high = wilson(successes, trials) if trials else (math.nan, math.nan)
    return Rate(successes=successes, trials=trials, low=low, high=high)


def _counted_rate(tasks: Sequence[Counted]) -> Rate:
    """The mean rate of tasks, which weigh the same, however many trials each had.

    Its interval is made of theirs by squaring and adding (MOVER: Zou and Donner, 2008, "Construction of confidence
    limits about effect measures", https://doi.org/10.1002/sim.3095).
    """
    each = [rate(one.successes, one.trials) for one in tasks]
    values, lows, highs = np.array([(one.value, one.low, one.high) for one in each]).T
    mean = float(values.mean())
    return Rate(
        successes=sum(one.successes for one in each),
        trials=sum(one.trials for one in each),
        low=mean - float(np.linalg.norm(values - lows)) / len(each),
        high=mean + float(np.linalg.norm(highs - values)) / len(each),
        over_tasks=None if len(each) == 1 else mean,
    )


def _rates(column: Outcomes) -> tuple[Rate, ...]:
    return tuple(rate(int(row.sum()), len(row)) for row in column)


def _against(found: Outcome, name: str, true: str) -> Against:
    if true == COUNTS:
        return _against_counts(name, found.columns[name], found.counts)
    one, other = _as_long(found.columns[name], found.columns[true])
    return _paired(name, true, one, other)


def _as_long(*columns: np.ndarray) -> list[np.ndarray]:
    """The starts that all columns have: the first."""
    fewest = min(column.shape[1] for column in columns)
    return [column[:, :fewest] for column in columns]


def _paired(name: str, true: str, found: Outcomes, truth: Outcomes) -> Against:
    x, y = truth.astype(np.float64), found.astype(np.float64)
    bounds = over_starts(x, y)
    made = _agreements(x.mean(axis=1), y.mean(axis=1), bounds)
    return Against(
        found=name, true=true, starts=x.shape[1], same=float((found == truth).mean()), **_errors(x, y, bounds), **made
    )


def _against_counts(name: str, found: Outcomes, counts: Sequence[Sequence[Counted]]) -> Against:
    y = found.astype(np.float64)
    successes, trials = np.moveaxis(np.array([[(one.successes, one.trials) for one in own] for own in counts]), -1, 0)
    bounds = over_counts(successes, trials, y)
    truth = (successes / trials).mean(axis=1)
    made = _agreements(truth, y.mean(axis=1), bounds)
    return Against(found=name, true=COUNTS, starts=y.shape[1], **_errors(truth[:, None], y, bounds), **made)


Bounds = Mapping[str, tuple[float, float]]


def _agreements(true: np.ndarray, found: np.ndarray, bounds: Bounds) -> dict[str, Any]:
    each: list[Agreement] = []
    for statistic in MEASURES:
        low, high = bounds[statistic]
        each.append(replace(agree(statistic, true, found), starts_low=low, starts_high=high))
    return {"k": len(true), "agreements": tuple(each)}


def _errors(true: np.ndarray, found: np.ndarray, bounds: Bounds) -> dict[str, Interval]:
    x, y, made = true.mean(axis=1), found.mean(axis=1), {}
    for name, value in (("bias", bias(x, y)), ("mae", mae(x, y))):
        low, high = bounds[name]
        made[name] = Interval(mean=float(value), low=low, high=high, num_clips=found.size, num_episodes=found.shape[1])
    return made


def _trusted(found: Outcome, doubt: Float[np.ndarray, "k n"], coverage: float) -> Trusted:
    """The list of policies, by their trusted episodes alone: in the world and, where starts are known, in the truth."""
    world, doubt = _as_long(found.columns[WORLD], doubt)
    count = max(1, round(coverage * doubt.size))
    kept = np.zeros(doubt.size, dtype=bool)
    kept[np.argsort(doubt, axis=None, kind="stable")[:count]] = True
    kept = kept.reshape(doubt.shape)
    rows = np.flatnonzero(kept.sum(axis=1) >= ENOUGH)
    if len(rows) < 2:
        return Trusted(coverage=coverage, episodes=count, against=None)
    kept, world = kept[rows], world[rows]
    if found.counts:
        of_tasks = np.array([[one.successes / one.trials for one in found.counts[row]] for row in rows])
        truth = np.tile(of_tasks, world.shape[1] // of_tasks.shape[1])  # tasks take turns
    else:
        truth = found.columns[PHYSICS][rows, : world.shape[1]].astype(np.float64)
    return Trusted(coverage=coverage, episodes=count, against=_of_kept(truth, world, kept, found.truth))


def _of_kept(truth: Float64[np.ndarray, "k n"], world: Outcomes, kept: Bool[np.ndarray, "k n"], true: str) -> Against:
    found, share = world.astype(np.float64), kept / kept.sum(axis=1, keepdims=True)
    x, y = (truth * share).sum(axis=1), (found * share).sum(axis=1)
    same = float((truth == found)[kept].mean()) if true == PHYSICS else math.nan
    unknown: Bounds = {name: (math.nan, math.nan) for name in (*MEASURES, "bias", "mae")}
    made = _agreements(x, y, unknown)
    errors = _errors(x[:, None], y[:, None], unknown)
    return Against(found=WORLD, true=true, starts=kept.shape[1], same=same, **errors, **made)


def _reading(found: Outcome, place: str) -> Reading:
    """How the reader's chances at a place go with physics, over all policies; intervals over starts."""
    chances, truth = _as_long(found.chances[place], found.columns[PHYSICS])
    starts = np.broadcast_to(np.arange(chances.shape[1]), chances.shape).ravel()
    hit, chance = truth.ravel(), chances.ravel().astype(np.float64)
    read = chance >= 0.5

    def of(weights: np.ndarray) -> np.ndarray:
        def share(of: np.ndarray, among: np.ndarray) -> np.ndarray:
            whole = weights @ among
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(whole > 0, weights @ (of & among) / whole, math.nan)

        everything = np.ones(len(hit), dtype=bool)
        areas = auroc(weights, chance, hit)
        return np.stack([share(read == hit, everything), areas, share(read, ~hit), share(~read, hit)], axis=-1)

    accuracy, area, optimism, missed = statistics(of, starts)
    return Reading(
        place=place,
        episodes=len(hit),
        successes=int(hit.sum()),
        accuracy=accuracy,
        auroc=area,
        optimism=optimism,
        missed=missed,
    )
