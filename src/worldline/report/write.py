"""Run folders -> one self-contained `report.html`: every number, picture and script is inside the file."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jinja2

from worldline.evaluation.result import label_of
from worldline.files import atomic
from worldline.metrics.table import METRICS
from worldline.report.figures import Drawing, over_steps, over_time
from worldline.report.gather import Run, gather
from worldline.report.tables import INCOMPARABLE, duration, format_number, judged_frames, split_of, tables
from worldline.report.video import Film, films
from worldline.schema import UsageError


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page about one or several run folders, as `out` if that is an HTML file; return its path.

    Args:
        out: file, or folder for a `report.html`; the first run folder if not given.

    Raises:
        UsageError: no run, or a folder that is none.
        DataError: a file that is damaged.
    """
    if not runs:
        raise UsageError("a report needs at least one run folder (worldline report RUN)")
    path = runs[0] if out is None else out
    path = path if path.suffix == ".html" else path / "report.html"
    gathered = [gather(folder) for folder in runs]
    if len({run.name for run in gathered}) < len(gathered):
        parents = [folder.resolve().parent.name for folder in runs]
        gathered = [replace(run, name=f"{parent}/{run.name}") for run, parent in zip(gathered, parents, strict=True)]
    page = _render(gathered)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _pictures(run: Run) -> list[Film]:
    found, data = run.forecasts, run.evaluation.data if run.evaluation else None
    if found is None or not len(found.real):
        return []
    share = (found.real.shape[1] - found.context) / data.horizon_frames if data else 1  # of frames that are shown
    return films(found, data.fps * share if data else None)


def _training(run: Run) -> tuple[list[Drawing], str]:
    """The curves of the losses, and what else there is to say."""
    if run.training is None:
        return [], ""
    series = run.training.series
    drawn = {"loss", *(name.removeprefix("val/") for name in series if name.startswith("val/"))}
    titles = sorted(drawn, key=lambda title: (title != "loss", title))
    named = [(t, {name: series[name] for name in (f"train/{t}", f"val/{t}") if name in series}) for t in titles]
    others = [name for name in series if name.split("/", 1)[1] not in drawn]
    notes = [f"Also logged: {', '.join(others)}."] if others else []
    notes += ["Its last line was unfinished and is left out."] if run.training.unfinished else []
    notes += [f"Took {duration(run.training.seconds)}."] if run.training.seconds is not None else []
    return [over_steps(title, lines) for title, lines in named if lines], " ".join(notes)


def _render(runs: Sequence[Run]) -> str:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    engine.filters |= {
        "number": lambda value, unit: format_number(value, unit).replace("-", "\N{MINUS SIGN}"),
        "duration": duration,
        "split": split_of,
        "frames": judged_frames,
        "label": label_of,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    evaluations = {run.name: run.evaluation for run in runs if run.evaluation is not None}
    curves = {
        name: [over_time(found, metric) for metric, rows in found.curves.items() if rows]
        for name, found in evaluations.items()
    }
    return engine.get_template("report.html.j2").render(
        runs=runs,
        metrics=METRICS,
        headline=tables(evaluations, "headline"),
        tokens=tables(evaluations, "token"),
        pictures={run.name: _pictures(run) for run in runs},
        curves=curves,
        training={run.name: _training(run) for run in runs},
        incomparable=INCOMPARABLE,
    )
