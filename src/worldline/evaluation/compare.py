"""Compare evaluations on the same clips: paired differences that hold together, episode by episode; learning curves.

It reads `metrics.json`, `scores.npz` and `receipt.json` of each evaluation, nothing else. What would not be a fair
comparison (other clips, horizons, tokens) is refused or left out, and it is said which identity differs.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from worldline.checks import refuse_unknown
from worldline.evaluation.engine import of_clips
from worldline.evaluation.receipt import Receipt, beside, differences
from worldline.evaluation.result import Chart, Curve, Evaluation, Row, label_of
from worldline.evaluation.verify import find_receipt
from worldline.files import read_npz
from worldline.metrics.bootstrap import Interval, Simultaneous, interval, simultaneous
from worldline.metrics.table import METRICS
from worldline.schema import DataError, UsageError

HEADLINE = ("psnr_db_last", "psnr_db_mean", "lpips_last", "full_ce")
"""Compared if nothing else is asked for: those that every run has."""
Over = Literal["steps", "episodes"]
_AGAIN = "Evaluate it again: `worldline evaluate RUN` writes what is needed."


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What of the evaluations is compared."""

    metric: tuple[str, ...] = ()
    """Ids of metrics; if not given, psnr_db_last, psnr_db_mean, lpips_last and full_ce, as far as all runs have them.
    Every further one makes the intervals wider, because all are made to hold together."""
    row: str | None = None
    """Id of the row that is compared; if not given, the first of each run: its forecast, or the mean of all samples."""
    over: Over | None = None
    """Draw a learning curve instead: over training steps, or over the episodes that the models were trained on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """One evaluation, with the numbers of every clip."""

    name: str
    evaluation: Evaluation
    receipt: Receipt
    arrays: Mapping[str, np.ndarray]

    @cached_property
    def clips(self) -> dict[tuple[str, int, int], int]:
        """Recording and first frame of each clip (and which of several such) -> its place."""
        names, seen, found = self.receipt.identities.data.recordings, Counter[tuple[str, int]](), {}
        for place, (episode, start) in enumerate(zip(self.arrays["episode"], self.arrays["start"], strict=True)):
            clip = names[str(episode)], int(start)
            found[(*clip, seen[clip])] = place
            seen[clip] += 1
        return found

    def row(self, id: str | None) -> Row:
        """The row of an id, or the first. Raises `UsageError` where there is no such row."""
        rows = {row.id: row for row in self.evaluation.rows}
        if id is not None:
            refuse_unknown(id, rows, what=f"row in {self.name}")
        return rows[id] if id else self.evaluation.rows[0]

    def numbers(self, row: str, metric: str) -> Float64[Tensor, " n"] | None:
        """One number for each clip, in the order of its own clips; None where they are not known."""
        for name, values in self.arrays.items():
            of, _, measured = name.partition("/")
            if of == row and measured in METRICS:
                found = of_clips(measured, torch.from_numpy(values).reshape(len(values), -1).double())
                if metric in found:
                    return found[metric]
        return None


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two runs in one metric, on the same clips."""

    metric: str
    one: str
    other: str
    """Names of the runs."""
    difference: Interval
    """Mean of `one` minus `other`, with the interval it has when it is looked at alone."""
    together: Simultaneous
    """The interval that holds together with those of all other differences here, and its p-value."""

    @property
    def better(self) -> str | None:
        """The run that is better, by the interval that holds together with all others; None if that is undecided, or
        where neither more nor less is better (`Metric.target`)."""
        low, high = self.together.low, self.together.high
        if math.isnan(low) or low <= 0 <= high or METRICS[self.metric].target is not None:
            return None
        return self.one if (low > 0) == METRICS[self.metric].higher_is_better else self.other


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Two runs, episode by episode: means over the clips of each."""

    metric: str
    one: str
    other: str
    recordings: tuple[str, ...]
    x: tuple[float, ...]
    """Of `one`."""
    y: tuple[float, ...]
    """Of `other`."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was found."""

    facts: str
    """What all of them were evaluated on."""
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, Row], ...]
    """Which run or runs, and the row: the compared ones first, then baselines and ceilings, those that are the same in
    all runs once."""
    differences: tuple[Paired, ...]
    scatters: tuple[Scatter, ...]
    """In the first of the metrics."""
    curves: tuple[Chart, ...]
    """One for each metric, if asked for."""
    commands: dict[str, str]
    """Name of a run -> the command that repeats its evaluation."""
    notes: tuple[str, ...]
    """What differs and what was left out, to be read before the numbers."""


def compare(runs: Sequence[str | Path], options: CompareOptions | None = None) -> Compared:
    """Compare evaluations of the same clips.

    Args:
        runs: folders of runs or of evaluations, or names of built-ins that were evaluated.

    Raises:
        UsageError: fewer than two, evaluations that cannot be compared (says what differs), no such metric or row.
        DataError: an evaluation lacks its receipt or its scores, or a file was edited.
    """
    options = options or CompareOptions()
    if len(runs) < 2:
        raise UsageError("a comparison needs at least two evaluations (worldline compare RUN RUN)")
    scored = _named([load_scored(place) for place in runs], [Path(place) for place in runs])
    for other in scored[1:]:
        _refuse_incomparable(scored[0], other)
    rows = [run.row(options.row) for run in scored]
    metrics, left_out = _metrics(scored, rows, options)
    differences = () if options.over else _differences(scored, rows, metrics)
    return Compared(
        facts=_facts(scored[0]),
        metrics=metrics,
        rows=_rows(scored, rows),
        differences=differences,
        scatters=() if options.over else _scatters(scored, rows, metrics[0]),
        curves=tuple(_curve(scored, rows, metric, options.over) for metric in metrics) if options.over else (),
        commands={one.name: one.receipt.command for one in scored},
        notes=(*left_out, *_notes(scored, rows)),
    )


def load_scored(place: str | Path) -> Scored:
    """Read an evaluation with its receipt and scores. Raises as `compare`."""
    path = find_receipt(place)
    receipt, files = Receipt.load(path), beside(path)
    receipt.refuse_other_files(path)
    if not files["scores"].exists():
        again = f"Evaluate it again: `{receipt.command}`."
        raise DataError(files["scores"], expected="the numbers of every clip", found="no file", fix=again)
    arrays = read_npz(files["scores"], what="the numbers of every clip", fix=_AGAIN)
    folder = path.parent.parent if path.parent.name.startswith("evaluation") else path.parent
    name = folder.resolve().name if path.name == "receipt.json" else path.name.removesuffix(".receipt.json")
    return Scored(name=name, evaluation=Evaluation.load(files["metrics"]), receipt=receipt, arrays=arrays)


def _named(scored: Sequence[Scored], places: Sequence[Path]) -> list[Scored]:
    """The same with names of their own: by the folder above where two are alike, then by number."""
    names = [one.name for one in scored]
    for name in [name for name, count in Counter(names).items() if count > 1]:
        alike = [i for i, one in enumerate(names) if one == name]
        above = [places[i].resolve().parent.name for i in alike]
        own = len(set(above)) == len(above)
        for number, i in enumerate(alike, start=1):
            names[i] = f"{above[number - 1]}/{name}" if own else f"{name} ({number})"
    return [replace(one, name=name) for one, name in zip(scored, names, strict=True)]


# --- what compares ---


def _refuse_incomparable(one: Scored, other: Scored) -> None:
    """Refuse evaluations whose numbers are of other things. Raises `UsageError` naming everything that differs."""
    ours, theirs = one.receipt.identities, other.receipt.identities
    shown, found = {"image size": "{0.image_size}", "horizon": "{0.horizon_frames} frames at {0.fps:g} per second"}, []
    if (ours.protocol, ours.protocol_version) != (theirs.protocol, theirs.protocol_version):
        versions = (f"{which.protocol}, version {which.protocol_version}" for which in (ours, theirs))
        found.append(f"protocol ({' | '.join(versions)})")
    for name, text in shown.items():
        values = [text.format(which.evaluation.data) for which in (one, other)]
        found += [f"{name} ({' | '.join(values)})"] if values[0] != values[1] else []
    recordings = [{clip[0] for clip in which.clips} for which in (one, other)]
    if recordings[0] != recordings[1]:
        shared = len(recordings[0] & recordings[1])
        found.append(f"data ({len(recordings[0])} | {len(recordings[1])} recordings, {shared} of them the same)")
    elif one.clips.keys() != other.clips.keys():
        shared = len(one.clips.keys() & other.clips.keys())
        found.append(f"clips ({len(one.clips)} | {len(other.clips)} of the same recordings, {shared} of them the same)")
    if found:
        raise UsageError(
            f"{one.name} and {other.name} cannot be compared: not the same {'; '.join(found)}. Evaluate both with the "
            "same --data, --num-clips and --window-stride, or compare others"
        )


def _metrics(
    scored: Sequence[Scored], rows: Sequence[Row], options: CompareOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The metrics that compare, and why others are left out. Raises `UsageError` for one that was asked for."""
    for metric in options.metric:
        refuse_unknown(metric, METRICS, what="metric")
    tokenizers = {str(one.evaluation.tokenizer) for one in scored}
    left_out, chosen = dict[str, str](), []
    for metric in dict.fromkeys(options.metric or HEADLINE):
        without = [one.name for one, row in zip(scored, rows, strict=True) if metric not in row.metrics]
        if without and (options.metric or len(without) < len(scored)):
            left_out[metric] = f"{label_of(metric)} is left out: {', '.join(without)} lack it"
        elif not without and METRICS[metric].group == "token" and len(tokenizers) > 1:
            made = "; ".join(f"{one.name}: {one.evaluation.tokenizer or 'not recorded'}" for one in scored)
            left_out[metric] = f"{label_of(metric)} is left out: the tokens are of other tokenizers ({made})"
        elif not without and not options.over and not _of_every_clip(scored, rows, metric):
            left_out[metric] = f"{label_of(metric)} is left out: it is no number of each clip, in the same clips of all"
        elif not without:
            chosen.append(metric)
    if not chosen or (options.metric and left_out):
        both = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
        why = "; ".join(left_out.values()) or "none of the usual metrics is in all of them"
        raise UsageError(f"{why}. In all of them are: {', '.join(both)} (--metric)")
    return tuple(chosen), tuple(left_out.values())


def _of_every_clip(scored: Sequence[Scored], rows: Sequence[Row], metric: str) -> bool:
    """Whether the metric is a number of each clip (FID is one of all together), and some clip has it in all runs."""
    if any(one.numbers(row.id, metric) is None for one, row in zip(scored, rows, strict=True)):
        return False
    return bool((~_aligned(scored, rows, metric).isnan()).all(dim=0).any())


def _notes(scored: Sequence[Scored], rows: Sequence[Row]) -> list[str]:
    """What differs without making the comparison void: the reader judges."""
    found = []
    if len({row.id for row in rows}) > 1:
        named = ", ".join(f"{one.name}: {label_of(row.id)}" for one, row in zip(scored, rows, strict=True))
        found.append(f"The compared rows are not of the same kind ({named}).")
    first = scored[0]
    for other in scored[1:]:
        differing = differences(first.receipt.identities, other.receipt.identities)
        told = [f"{one.part} ({one.recorded} | {one.found})" for one in differing if one.kind != "model"]
        if told:
            found.append(f"{first.name} | {other.name}, not the same: {'; '.join(told)}.")
    if seen := [one.name for one in scored if one.evaluation.data.split != "held out"]:
        found.append(f"Not known to be held out from: {', '.join(seen)}.")
    return found


# --- what is compared ---


def _facts(one: Scored) -> str:
    data = one.evaluation.data
    clips = f"{data.num_clips} clips of {data.num_episodes} episodes of {data.name}"
    return f"{one.evaluation.protocol}: {clips}, {data.horizon_frames} frames at {data.fps:g} per second"


def _rows(scored: Sequence[Scored], compared: Sequence[Row]) -> tuple[tuple[str, Row], ...]:
    """The compared row of each run, then baselines and ceilings: what is the same in several, once."""
    others: dict[str, tuple[Row, list[str]]] = {}
    for one in scored:
        for row in one.evaluation.rows:
            if row.role in ("baseline", "ceiling"):
                others.setdefault(repr(row), (row, []))[1].append(one.name)  # NaN is not equal to NaN
    same = [("all" if len(names) == len(scored) else ", ".join(names), row) for row, names in others.values()]
    return (*((one.name, row) for one, row in zip(scored, compared, strict=True)), *same)


def _aligned(scored: Sequence[Scored], rows: Sequence[Row], metric: str) -> Float64[Tensor, "runs n"]:
    """The numbers of every run, clip by clip in the order of the first."""
    order, found = list(scored[0].clips), []
    for one, row in zip(scored, rows, strict=True):
        numbers = one.numbers(row.id, metric)
        assert numbers is not None, "metrics without are left out"
        found.append(numbers[[one.clips[clip] for clip in order]])
    return torch.stack(found)


def _recordings(one: Scored) -> tuple[list[str], Int64[Tensor, " n"]]:
    """The recordings, and of which each clip is."""
    names = sorted({clip[0] for clip in one.clips})
    return names, torch.tensor([names.index(clip[0]) for clip in one.clips])


def _differences(scored: Sequence[Scored], rows: Sequence[Row], metrics: Sequence[str]) -> tuple[Paired, ...]:
    """Every two runs in every metric; the intervals of all hold together."""
    _, episodes = _recordings(scored[0])
    pairs = list(combinations(range(len(scored)), 2))
    numbers = {metric: _aligned(scored, rows, metric) for metric in metrics}
    asked = [(metric, a, b) for metric in metrics for a, b in pairs]
    columns = torch.stack([numbers[metric][a] - numbers[metric][b] for metric, a, b in asked], dim=1)
    found = []
    for (metric, a, b), values, together in zip(asked, columns.T, simultaneous(columns, episodes), strict=True):
        known = ~values.isnan()
        alone, names = interval(values[known], episodes[known]), {"one": scored[a].name, "other": scored[b].name}
        found.append(Paired(metric=metric, difference=alone, together=together, **names))
    return tuple(found)


def _scatters(scored: Sequence[Scored], rows: Sequence[Row], metric: str) -> tuple[Scatter, ...]:
    names, episodes = _recordings(scored[0])
    numbers = _aligned(scored, rows, metric)
    means = [[float(values[episodes == i].nanmean()) for i in range(len(names))] for values in numbers]
    return tuple(
        Scatter(
            metric=metric,
            one=scored[a].name,
            other=scored[b].name,
            recordings=tuple(names),
            x=tuple(means[a]),
            y=tuple(means[b]),
        )
        for a, b in combinations(range(len(scored)), 2)
    )


def _curve(scored: Sequence[Scored], rows: Sequence[Row], metric: str, over: Over) -> Chart:
    """A metric over training steps or episodes. Checkpoints of one run are one curve, single runs are one together."""
    points: dict[str, list[tuple[float, Interval]]] = {}
    for one, row in zip(scored, rows, strict=True):
        models = one.receipt.identities.models
        model = models.get("world") or next(iter(models.values()))
        x = model.step if over == "steps" else model.recordings
        if x is None:
            raise UsageError(f"{one.name} does not say which episodes it was trained on; compare over steps")
        curve = str(Path(one.receipt.folder or "", one.receipt.run)) if over == "steps" else ""
        points.setdefault(curve, []).append((float(x), row.metrics[metric]))
    if all(len(curve) == 1 for curve in points.values()):
        points = {"": [point for curve in points.values() for point in curve]}
    curves = []
    for name, curve in points.items():
        x, y = zip(*sorted(curve, key=lambda point: point[0]), strict=True)
        curves.append(Curve(label=Path(name).name or label_of(rows[0].id), x=x, y=y))
    y_label = METRICS[metric].heading
    return Chart(title=label_of(metric), x_label=f"training {over}", y_label=y_label, curves=tuple(curves))
