"""Run folders -> one self-contained `report.html`: every number, picture and script is inside the file."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from worldline.evaluation.result import label_of
from worldline.files import atomic
from worldline.metrics.table import METRICS
from worldline.report import figures, text
from worldline.report.gather import Run, gather
from worldline.report.tables import tables
from worldline.report.video import Film, films
from worldline.schema import UsageError


class Part(NamedTuple):
    """The part of one run in a section, or the reason why it has none."""

    run: str
    items: tuple[Any, ...]
    absent: str
    note: str


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write `report.html` (or to `out`, where that is an HTML file) for one or several run folders; return its path.

    Raises `UsageError` for no run or a folder that is none, and `DataError` for a file that is damaged.
    """
    if not runs:
        raise UsageError("a report needs at least one run folder")
    path = out if out.suffix == ".html" else out / "report.html"
    gathered = [gather(folder) for folder in runs]
    if len({run.name for run in gathered}) < len(gathered):
        parents = [folder.resolve().parent.name for folder in runs]
        gathered = [replace(run, name=f"{parent}/{run.name}") for run, parent in zip(gathered, parents, strict=True)]
    page = _render(gathered)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _part(run: Run, file: str, items: Iterable[Any], otherwise: str, note: str = "") -> Part:
    """Items of a section; where there are none, `file` (a field of the run) is absent, or it is as `otherwise` says."""
    return Part(run.name, tuple(items), run.absent.get(file, otherwise), note)


def _pictures(run: Run) -> Part:
    found, data = run.forecasts, run.evaluation.data if run.evaluation else None
    shown: Sequence[Film] = ()
    if found and len(found.real):
        share = (found.real.shape[1] - found.context) / data.horizon_frames if data else 1  # of frames that are shown
        shown = films(found, data.fps * share if data else None)
    note = label_of(next(iter(found.rows), "")) if found else ""
    return _part(run, "forecasts", shown, "evaluation/forecasts.npz holds no clip", note)


def _curves(run: Run) -> Part:
    found = run.evaluation
    drawings = [figures.over_time(found, metric) for metric, rows in found.curves.items() if rows] if found else ()
    return _part(run, "evaluation", drawings, "the evaluation recorded no curve over time")


def _comparisons(run: Run) -> Part:
    claims = run.evaluation.comparisons if run.evaluation else ()
    items = ((claim, METRICS[claim.metric]) for claim in claims)
    return _part(run, "evaluation", items, "the evaluation made no comparison")


def _training(run: Run) -> Part:
    if run.training is None:
        return _part(run, "training", (), "")
    series = run.training.series
    drawn = {"loss", *(name.removeprefix("val/") for name in series if name.startswith("val/"))}
    titles = sorted(drawn, key=lambda title: (title != "loss", title))
    named = [(t, {name: series[name] for name in (f"train/{t}", f"val/{t}") if name in series}) for t in titles]
    drawings = (figures.over_steps(title, lines) for title, lines in named if lines)
    others = [name for name in series if name.split("/", 1)[1] not in drawn]
    notes = [f"Also logged: {', '.join(others)}."] if others else []
    notes += ["Its last line was unfinished and is left out."] if run.training.unfinished else []
    notes += [f"Took {text.duration(run.training.seconds)}."] if run.training.seconds is not None else []
    return _part(run, "training", drawings, "metrics.jsonl logs no loss", " ".join(notes))


def _render(runs: Sequence[Run]) -> str:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    engine.filters |= {
        "number": lambda value, unit: text.format_number(value, unit).replace("-", "\N{MINUS SIGN}"),
        "duration": text.duration,
        "split": text.split_of,
        "frames": text.judged_frames,
        "label": label_of,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    evaluations = {run.name: run.evaluation for run in runs if run.evaluation is not None}
    return engine.get_template("report.html.j2").render(
        runs=runs,
        headline=tables(evaluations, "headline"),
        tokens=tables(evaluations, "token"),
        pictures=[_pictures(run) for run in runs],
        curves=[_curves(run) for run in runs],
        comparisons=[_comparisons(run) for run in runs],
        training=[_training(run) for run in runs],
        incomparable=text.INCOMPARABLE,
    )
