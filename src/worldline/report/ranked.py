"""A ranking of policies as text, and as a part of a page: sentences, tables, drawings and films. Only its file is read.

The same tables of words are laid out in a terminal and on the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from worldline.evaluation.result import Chart, Curve
from worldline.metrics.bootstrap import Interval
from worldline.metrics.ranking import LABELS, Agreement
from worldline.ranking.conclude import ENOUGH
from worldline.ranking.result import PHYSICS, TWIN, WORLD, Against, Film, Ranking, Rate, Reading, TaskRanking, Trusted
from worldline.report.drawings import Drawing, of_chart, rates_drawing
from worldline.report.films import BUDGET, Sheet, Storing, sheets
from worldline.report.tables import duration, laid

ACCURACY = {TWIN: "true frames of the twin", "replayed": "imagined frames of the twin's commands"}
HELD = {
    "allow": "They were given as they are.",
    "clip": "The nearest state within was given in their place, in the twin too.",
    "refuse": "Policies that gave such a one were left out.",
}
SHOWN_FRAMES = 24
"""Of a film, at most; others are left out, evenly."""
LADDER = (Storing(75, 96), Storing(70, 64), Storing(60, 48))
"""How films are stored, from the best to the smallest."""


class Words(NamedTuple):
    """A table of words: the first column says what a line is of."""

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ShownTask:
    """A task, as a page shows it."""

    id: str
    label: str
    verdict: str
    sentence: str
    tables: tuple[Words, ...]
    drawings: tuple[Drawing, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reel:
    """A film, as a page shows it: for each policy its sheets, the twin's (where there is one) and the world's."""

    task: str
    start: str
    policies: tuple[str, ...]
    twin: tuple[Sheet, ...]
    world: tuple[Sheet, ...]
    frames: int
    fps: float


@dataclass(frozen=True, kw_only=True)
class ShownRanking:
    """A ranking, as a page shows it."""

    sentence: str
    tasks: tuple[ShownTask, ...]
    reels: tuple[Reel, ...]
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    """What decided the numbers: name and text."""


def shown(ranking: Ranking, films: Sequence[Film] = (), *, budget: int = BUDGET) -> ShownRanking:
    """What a page says of a ranking."""
    parts = [ranking.overall, *ranking.tasks] if ranking.overall else [*ranking.tasks]
    return ShownRanking(
        sentence=_sentence(parts[0], ranking),
        tasks=tuple(_task(one, ranking) for one in parts),
        reels=_reels(films, ranking, budget),
        notes=tuple(_notes(ranking)),
        facts=tuple(_facts(ranking)),
    )


def ranking_text(ranking: Ranking) -> str:
    """A ranking for a terminal."""
    found, lines = shown(ranking), []
    for task in found.tasks:
        lines += [f"{task.label}: {task.sentence}", *(f"  warning: {text}" for text in task.warnings), ""]
        for table in task.tables:
            lines += [*laid([(table.title, *table.heads), *table.lines]), ""]
    return "\n".join([*lines, *found.notes]).rstrip() + "\n"


# --- sentences ---


def _sentence(task: TaskRanking, ranking: Ranking) -> str:
    against = task.of(WORLD)
    if against is None:
        return "The world was not compared."
    truth = ranking.labels.get(task.truth, task.truth)
    rho, r = against.agreement("spearman"), against.agreement("pearson")
    if math.isnan(rho.value):
        return f"Nothing can be said of the order of {against.k} policies: {rho.warning}."
    said = f"Of {against.k} policies, success rates in the world go with {truth} with {_long(rho)} and {_long(r)}"
    way = "too often" if against.bias.mean >= 0 else "too seldom"
    off = abs(100 * against.bias.mean)
    return f"{said}; the world finds success {off:.0f} points {way} (mean absolute error {_points(against.mae)})."


def _long(one: Agreement) -> str:
    if math.isnan(one.value):
        return f"{one.label} not defined"
    parts = [f"{_number(one.low)} to {_number(one.high)}"] if not math.isnan(one.low) else []
    if one.without_low is not None:
        between = f"{_number(one.dropped_low)} to {_number(one.dropped_high)} without any one of them"
        parts.append("not defined without one of them" if math.isnan(one.dropped_low) else between)
    return f"{one.label} {_number(one.value)}" + (f" ({'; '.join(parts)})" if parts else "")


def _verdict(task: TaskRanking) -> str:
    against = task.of(WORLD)
    rho = math.nan if against is None else against.agreement("spearman").value
    return "not defined" if math.isnan(rho) else f"rho {_number(rho)}"


def _warnings(task: TaskRanking, ranking: Ranking) -> list[str]:
    against = task.of(WORLD)
    found = [] if against is None else [one.warning for one in against.agreements if one.warning]
    if against is not None and against.k < 10:
        found.append(f"only {against.k} policies: correlations of so few are unstable")
    return list(dict.fromkeys(found))


# --- tables ---


def _task(task: TaskRanking, ranking: Ranking) -> ShownTask:
    main = [one for one in task.against if one.found in (WORLD, TWIN) and one.true == task.truth]
    tables = [_rates(task, ranking), _agreement("agreement", main, task, ranking), _errors(task, ranking)]
    tables += [_read(task.readings)] if task.readings else []
    tables += [_outside(task, ranking)] if _strays(task) else []
    tables += [_trusted(task.trusted, ranking)] if task.trusted else []
    others = [one for one in task.against if one not in main]
    tables += [_agreement("agreement of controls, and with what is read", others, task, ranking)] if others else []
    return ShownTask(
        id=task.id,
        label=task.label,
        verdict=_verdict(task),
        sentence=_sentence(task, ranking),
        tables=tuple(tables),
        drawings=tuple(_drawings(task, ranking)),
        warnings=tuple(_warnings(task, ranking)),
    )


def _rates(task: TaskRanking, ranking: Ranking) -> Words:
    columns = list(task.rates)
    lines = []
    for number, policy in enumerate(task.policies):
        cells = (_rate(task.rates[column][number]) for column in columns)
        lines.append((f"{number + 1} {policy}", *cells))
    heads = tuple(ranking.labels.get(column, column) for column in columns)
    note = f"Successes in per cent with 95 % intervals (Wilson), from {task.starts} starts."
    return Words("success rate", heads, tuple(lines), note)


def _agreement(title: str, pairs: Sequence[Against], task: TaskRanking, ranking: Ranking) -> Words:
    heads = ("statistic", "k", "value", "95 % over policies", "95 % over starts", "without one policy", "p")
    lines = []
    for against in pairs:
        for one in against.agreements:
            lines.append((_pair(against, ranking), one.label, str(one.k), *_cells(one, task)))
    note = (
        "k policies. The interval over policies is Fisher's, for a correlation; that over starts resamples the starts, "
        "with these policies. Without one policy: the range of the statistic when any one is left out, and which one "
        "gives the end that is worse. p is of a one-sided permutation test. MMRV: 0 is best."
    )
    return Words(title, heads, tuple(lines), note)


def _cells(one: Agreement, task: TaskRanking) -> tuple[str, ...]:
    worse = one.without_high if one.statistic == "mmrv" else one.without_low
    dropped = "-"
    if worse is not None:
        dropped = "not defined" if math.isnan(one.dropped_low) else _range(one.dropped_low, one.dropped_high)
        dropped += f" ({task.policies[worse]})" if one.k == len(task.policies) else ""
    return (
        _number(one.value),
        _range(one.low, one.high),
        _range(one.starts_low, one.starts_high),
        dropped,
        _chance(one),
    )


def _chance(one: Agreement) -> str:
    test = one.test
    if math.isnan(test.p):
        return "-"
    p = f"{test.p:.4f}" if test.p < 0.01 else f"{test.p:.2f}"
    return f"{p}{'' if test.exact else '*'}" + (f", least {test.least:.2f}" if test.least > 0.05 else "")


def _errors(task: TaskRanking, ranking: Ranking) -> Words:
    lines = []
    for one in task.against:
        same = "-" if math.isnan(one.same) else f"{100 * one.same:.0f} %"
        lines.append((_pair(one, ranking), str(one.starts), _points(one.bias), _points(one.mae), same))
    heads = ("starts", "bias", "mean absolute error", "same outcome")
    note = "Points of success rate; above 0 is optimistic. Same outcome: share of the episodes, start by start."
    return Words("error", heads, tuple(lines), note)


def _read(readings: Sequence[Reading]) -> Words:
    lines = [
        (
            ACCURACY.get(one.place, one.place),
            f"{one.episodes} ({one.successes})",
            *(_share(value) for value in (one.accuracy, one.auroc, one.optimism, one.missed)),
        )
        for one in readings
    ]
    heads = ("episodes (successes)", "accuracy", "AUROC", "failures read as success", "successes missed")
    note = "How success is read from pixels, beside physics, with 95 % intervals over starts."
    return Words("reading success", heads, tuple(lines), note)


def _strays(task: TaskRanking) -> bool:
    """Whether any policy was outside of the data's range."""
    return any(map(any, task.outside.values()))


def _outside(task: TaskRanking, ranking: Ranking) -> Words:
    lines = []
    for number, policy in enumerate(task.policies):
        counts = [of_place[number] for of_place in task.outside.values()]
        if any(counts):
            lines.append((f"{number + 1} {policy}", *(f"{count} of {task.actions}" for count in counts)))
    heads = tuple("twin" if place == TWIN else ranking.labels.get(place, place) for place in task.outside)
    note = (
        "Actions of which a number lies outside of the range of the world's training states, which it has never seen. "
        f"{HELD.get(ranking.settings.get('out_of_range', 'allow'), '')} Policies that are not named had none."
    )
    return Words("actions out of range", heads, tuple(lines), note)


def _trusted(trusted: Sequence[Trusted], ranking: Ranking) -> Words:
    lines = []
    for one in trusted:
        against = one.against
        cells: tuple[str, ...] = ("-",) * 5
        if against is not None:
            same = "-" if math.isnan(against.same) else f"{100 * against.same:.0f} %"
            values = (_number(stat.value) for stat in against.agreements)
            cells = (str(against.k), *values, same)
        lines.append((f"{100 * one.coverage:.0f} %", str(one.episodes), *cells))
    heads = ("episodes", "k", *LABELS.values(), "same outcome")
    note = (
        f"Episodes are trusted by {_signal(ranking)}: the most trusted first. A policy with fewer than {ENOUGH} "
        "of them is left out; with fewer than two policies nothing is said."
    )
    return Words("coverage", heads, tuple(lines), note)


def _signal(ranking: Ranking) -> str:
    names = {
        "spread": "the spread of samples",
        "token_entropy": "the entropy of tokens",
        "round_trip": "what the tokenizer loses of the frames",
    }
    return f"{names.get(ranking.signal or '', ranking.signal or 'nothing')}, per motion"


# --- drawings ---


def _drawings(task: TaskRanking, ranking: Ranking) -> list[Drawing]:
    made = []
    truth = task.rates.get(task.truth)
    for column in (WORLD, TWIN):
        if truth is None or column not in task.rates:
            continue
        found = task.rates[column]
        label = ranking.labels.get(column, column)
        note = "Each number is a policy, with 95 % intervals; on the dashed line both rates are the same."
        x_label, y_label = f"{ranking.labels.get(task.truth, task.truth)}, %", f"{label}, %"
        x, y = _spans(truth), _spans(found)
        made.append(rates_drawing(f"{label} against {x_label[:-3]}", x_label, y_label, x, y, note=note))
    curves = [_curve(task, statistic) for statistic in ("spearman", "pearson")]
    if any(len(curve.x) > 1 for curve in curves):
        title = "Agreement among trusted episodes"
        chart = Chart(title=title, x_label="share of episodes, %", y_label="correlation", curves=tuple(curves))
        made.append(of_chart(chart))
    return made


def _spans(rates: Sequence[Rate]) -> np.ndarray:
    """Rates in per cent, with their intervals: `3 k`."""
    return np.array([(100 * one.value, 100 * one.low, 100 * one.high) for one in rates]).T


def _curve(task: TaskRanking, statistic: str) -> Curve:
    points: dict[float, Interval] = {}
    for one in task.trusted:
        found = None if one.against is None else next(a for a in one.against.agreements if a.statistic == statistic)
        if found is not None and not math.isnan(found.value):
            known = Interval(mean=found.value, low=found.low, high=found.high, num_clips=found.k, num_episodes=found.k)
            points[100 * one.coverage] = known
    label = next(text for name, text in LABELS.items() if name == statistic)
    return Curve(label, tuple(points), tuple(points.values()))


# --- films ---


def _reels(films: Sequence[Film], ranking: Ranking, budget: int) -> tuple[Reel, ...]:
    made: tuple[Reel, ...] = ()
    for storing in LADDER:
        made = tuple(_reel(film, ranking.fps, storing) for film in films)
        if sum(len(sheet.uri) for reel in made for sheet in (*reel.twin, *reel.world)) <= budget:
            break
    return made


def _reel(film: Film, fps: float, storing: Storing) -> Reel:
    every = -(-film.world.shape[1] // SHOWN_FRAMES)
    twin = () if film.twin is None else sheets(film.twin[:, ::every], storing)
    rate = 10.0 if math.isnan(fps) else fps / every
    return Reel(
        task=film.task,
        start=film.start,
        policies=film.policies,
        twin=twin,
        world=sheets(film.world[:, ::every], storing),
        frames=film.world[:, ::every].shape[1],
        fps=rate,
    )


# --- words ---


def _notes(ranking: Ranking) -> list[str]:
    notes = [f"left out: {one.said}" for one in ranking.failures]
    notes += [f"not computed: {ranking.labels.get(id, id)}: {why}" for id, why in ranking.not_computed.items()]
    gaps = [(task.label, task.gap) for task in ranking.tasks if task.gap]
    units = {"angle": "rad", "velocity": "m/s or rad/s", "binary": "of 1", "other": ""}
    for label, gap in gaps:
        said = ", ".join(f"{kind} {value:.3g} {units.get(kind, '')}".strip() for kind, value in gap.items())
        notes.append(f"commanded and reached state in the twin differ on average, {label}: {said}")
    if any(task.outside for task in ranking.tasks) and not any(map(_strays, ranking.tasks)):
        notes.append("no policy that was ranked commanded a state outside of the range of the world's training states")
    starred = any(not a.test.exact for task in ranking.tasks for one in task.against for a in one.agreements)
    if starred:
        notes.append("* of drawn orders of the policies, not of all of them.")
    return notes


def _facts(ranking: Ranking) -> list[tuple[str, str]]:
    made = ranking.provenance
    facts = [("world", ranking.world), ("success is read by", ranking.reader), ("command", made.command)]
    facts += [("commit", made.commit), ("machine", made.environment.get("cpu", "unknown"))]
    facts += [("playing took", duration(ranking.seconds))]
    facts += [(name.replace("_", " "), str(value)) for name, value in ranking.settings.items() if value is not None]
    facts += [("seeds of the starts", "; ".join(f"{task}: {_seeds(seeds)}" for task, seeds in made.seeds.items()))]
    return facts


def _seeds(seeds: Sequence[int]) -> str:
    whole = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _pair(one: Against, ranking: Ranking) -> str:
    found, true = (ranking.labels.get(id, id) for id in (one.found, one.true))
    return found if one.true == PHYSICS else f"{found} (beside {true})"


def _rate(one: Rate) -> str:
    if not one.trials:
        return "-"
    return f"{100 * one.value:.0f} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def _points(value: Interval) -> str:
    between = "" if math.isnan(value.low) else f" [{100 * value.low:.0f}, {100 * value.high:.0f}]"
    return f"{100 * value.mean:.0f}{between}"


def _share(value: Interval) -> str:
    if math.isnan(value.mean):
        return "-"
    return f"{value.mean:.2f}" + ("" if math.isnan(value.low) else f" [{value.low:.2f}, {value.high:.2f}]")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


def _range(low: float, high: float) -> str:
    return "-" if math.isnan(low) or math.isnan(high) else f"[{_number(low)}, {_number(high)}]"
