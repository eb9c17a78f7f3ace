"""Run folders -> one self-contained `report.html`: every number, picture and script is inside the file.

Only files are read. A part that a folder lacks is None, with the reason in `Run.absent`, and the page says so.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from worldline.evaluation.result import Evaluation, label_of
from worldline.files import atomic, read_json, read_npz
from worldline.metrics.table import METRICS
from worldline.report.pictures import Drawing, Film, Forecasts, films, over_steps, over_time
from worldline.report.tables import INCOMPARABLE, duration, facts_of, format_number, tables
from worldline.rundir import RunDir
from worldline.schema import DataError, UsageError

_AGAIN = "Write the file again, or delete it."


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a report shows of one run folder."""

    name: str
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    training: list[dict[str, int | float]] | None
    """The lines of its log."""
    unfinished: bool
    """Whether it ends in half a line, which is left out: the run is being written, or was killed."""
    evaluation: Evaluation | None
    forecasts: Forecasts | None
    absent: dict[str, str]
    """Names of the fields that are None -> why."""


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page about one or several run folders; return its path.

    Args:
        out: HTML file, or folder for a `report.html`; the first run folder if not given.

    Raises:
        UsageError: no run, or a folder that is none.
        DataError: a file that is damaged.
    """
    if not runs:
        raise UsageError("a report needs at least one run folder; give a run folder, or several (worldline report RUN)")
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


# --- what a run folder holds ---


def gather(folder: Path) -> Run:
    """Read a run folder. Raises `UsageError` where there is none of a run, `DataError` for a file that is damaged."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give run folders, as `worldline train` makes them")
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "config": ("config.json", read_json),
        "environment": ("environment.json", read_json),
        "training": ("metrics.jsonl", lambda _: RunDir(folder).logged()),
        "evaluation": ("evaluation/metrics.json", Evaluation.load),
        "forecasts": ("evaluation/forecasts.npz", _forecasts),
    }
    found = {part: read(folder / name) if (folder / name).exists() else None for part, (name, read) in readers.items()}
    absent = {part: f"{name} is not in the run folder" for part, (name, _) in readers.items() if found[part] is None}
    if len(absent) == len(readers):
        names = ", ".join(name for name, _ in readers.values())
        raise UsageError(f"{folder} is no run folder: it has none of {names}")
    unfinished = bool(found["training"]) and not RunDir(folder).metrics.read_bytes().endswith(b"\n")
    return Run(name=folder.resolve().name, absent=absent, unfinished=unfinished, **found)


def _forecasts(path: Path) -> Forecasts:
    """Read what an evaluation keeps of some clips for the report. f = t - context: the frames after the context.

        rows        r               ids of the rows, the forecast first
        context     ()              frames that the forecasters were given
        psnr        n               PSNR in dB of the first row's last frame, by clip
        real        n t h w 3       uint8, what happened
        forecast_I  n t h w 3       uint8, row I: the context, then its forecast

    Optional, together: maps of how sure the first row was of each place, larger where it was less sure.

        maps        m               ids: `spread` (standard deviation of the draws), `token_entropy`, ...
        map_labels  m               what people read, such as `spread of 5 draws`
        map_units   m               `grey levels` (of 0..255, as errors are, so that both share a scale), `nats`, ...
        map_I       n f a b         float, map I; a x b is the image's size or coarser (a token grid); NaN: not known

    Raises:
        DataError: an array is absent or of another shape.
    """
    arrays = read_npz(path, what="a NumPy archive of forecasts", fix=_AGAIN)
    try:
        real, context, psnr = arrays["real"], int(arrays["context"]), arrays["psnr"].astype(np.float64)
        rows = {str(name): arrays[f"forecast_{i}"] for i, name in enumerate(arrays["rows"])}
    except KeyError as error:
        expected = "arrays real, rows, context, psnr and forecast_0, ..."
        raise DataError(path, expected=expected, found=f"no {error.args[0]}", fix=_AGAIN) from error
    alike = all(x.dtype == np.uint8 and x.shape == (*real.shape[:4], 3) for x in (real, *rows.values()))
    if not alike or psnr.shape != real.shape[:1] or not 0 < context < real.shape[1]:
        shapes = {name: f"{x.dtype} {x.shape}" for name, x in {"real": real, **rows, "psnr": psnr}.items()}
        expected = "real and forecasts as uint8 n t h w 3 of one shape, psnr of each clip, and 0 < context < t"
        raise DataError(path, expected=expected, found=f"{shapes} and context {context}", fix=_AGAIN)
    return Forecasts(real=real, rows=rows, context=context, psnr=psnr)


# --- the page ---


def _pictures(run: Run) -> list[Film]:
    found, data = run.forecasts, run.evaluation.data if run.evaluation else None
    if found is None or not len(found.real):
        return []
    share = (found.real.shape[1] - found.context) / data.horizon_frames if data else 1  # of frames that are shown
    return films(found, data.fps * share if data else None)


def _losses(run: Run) -> tuple[list[Drawing], str]:
    """The curves of the losses, and what else there is to say."""
    grouped: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in run.training or ():
        for name in record:
            if name.startswith(("train/", "val/")):
                points = grouped.setdefault(name.split("/", 1)[1], {}).setdefault(name, [])
                points.append((float(record["step"]), float(record[name])))
    drawn = {title: lines for title, lines in grouped.items() if title == "loss" or f"val/{title}" in lines}
    others = [name for title, lines in grouped.items() if title not in drawn for name in lines]
    notes = [f"Also logged: {', '.join(others)}."] if others else []
    notes += ["Its last line was unfinished and is left out."] if run.unfinished else []
    notes += [f"Took {duration(record['seconds'])}." for record in (run.training or ())[-1:] if "seconds" in record]
    return [over_steps(title, drawn[title]) for title in sorted(drawn, key=lambda t: (t != "loss", t))], " ".join(notes)


def _render(runs: Sequence[Run]) -> str:
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    engine.filters |= {
        "number": lambda value, unit: format_number(value, unit).replace("-", "\N{MINUS SIGN}"),
        "duration": duration,
        "facts": facts_of,
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
        training={run.name: _losses(run) for run in runs},
        incomparable=INCOMPARABLE,
    )
