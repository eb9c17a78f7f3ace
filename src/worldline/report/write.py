"""Run folders -> one self-contained `report.html`: every number, picture and script is inside the file.

Only puts together what `gather`, `figures` and `video` give; the page itself is `report.html.j2`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldline.evaluation.result import Role, label_of
from worldline.files import atomic
from worldline.metrics.table import METRICS
from worldline.report import figures, text, video
from worldline.report.gather import Run, gather
from worldline.report.tables import tables
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one run contributes to a section, or why it contributes nothing."""

    run: str
    items: tuple[Any, ...]
    absent: str
    note: str = ""


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write `report.html` for one or several run folders and return its path.

    Args:
        out: the file, or a folder to put `report.html` into.

    Raises:
        UsageError: no run, or a folder that is none.
        DataError: a file of a run folder is damaged; names it. Absent files are said on the page instead.
    """
    if not runs:
        raise UsageError("a report needs at least one run folder")
    path = out if out.suffix == ".html" else out / "report.html"
    gathered = [gather(folder) for folder in runs]
    if len({run.name for run in gathered}) < len(gathered):
        gathered = [
            replace(run, name=f"{folder.resolve().parent.name}/{run.name}")
            for run, folder in zip(gathered, runs, strict=True)
        ]
    page = _render(gathered)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _pictures(run: Run) -> Part:
    if run.forecasts is None:
        return Part(run=run.name, items=(), absent=run.absent["forecasts"])
    fps = run.evaluation.data.fps if run.evaluation else None
    return Part(
        run=run.name,
        items=tuple(video.films(run.forecasts, fps)),
        absent="evaluation/forecasts.npz holds no clip",
        note=label_of(next(iter(run.forecasts.rows), "")),
    )


def _curves(run: Run) -> Part:
    if run.evaluation is None:
        return Part(run=run.name, items=(), absent=run.absent["evaluation"])
    roles: dict[str, Role] = {row.id: row.role for row in run.evaluation.rows}
    drawings = tuple(
        figures.over_time(metric, curves, roles, run.evaluation.data.fps)
        for metric, curves in run.evaluation.curves.items()
        if curves
    )
    return Part(run=run.name, items=drawings, absent="the evaluation recorded no curve over time")


def _comparisons(run: Run) -> Part:
    if run.evaluation is None:
        return Part(run=run.name, items=(), absent=run.absent["evaluation"])
    items = tuple((c, METRICS[c.metric]) for c in run.evaluation.comparisons)
    return Part(run=run.name, items=items, absent="the evaluation made no comparison")


def _training(run: Run) -> Part:
    if run.training is None:
        return Part(run=run.name, items=(), absent=run.absent["training"])
    series = run.training.series
    drawn = {"loss", *(name.removeprefix("val/") for name in series if name.startswith("val/"))}
    drawings = []
    for title in sorted(drawn, key=lambda title: (title != "loss", title)):
        names = [name for name in (f"train/{title}", f"val/{title}") if name in series]
        if names:
            drawings.append(figures.over_steps(title, {name: series[name] for name in names}))
    others = [name for name in series if name.split("/", 1)[1] not in drawn]
    notes = [f"Also logged: {', '.join(others)}." if others else ""]
    notes += ["Its last line was unfinished and is left out." if run.training.num_unfinished else ""]
    notes += [f"Took {text.duration(run.training.seconds)}." if run.training.seconds is not None else ""]
    return Part(
        run=run.name,
        items=tuple(drawings),
        absent="metrics.jsonl logs no loss",
        note=" ".join(note for note in notes if note),
    )


def _render(runs: Sequence[Run]) -> str:
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {
        "number": lambda value, unit: text.format_number(value, unit).replace("-", "\N{MINUS SIGN}"),
        "duration": text.duration,
        "split": text.split_of,
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
