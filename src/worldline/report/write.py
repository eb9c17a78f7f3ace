"""Run folders -> one self-contained `report.html`: every number, picture and script is inside the file."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from worldline.data.clips import evenly
from worldline.evaluation.result import Evaluation, Finding, label_of
from worldline.files import atomic
from worldline.metrics.table import METRICS
from worldline.report.cards import Fact, data_card, model_card
from worldline.report.drawings import Drawing, of_chart, over_steps, over_time
from worldline.report.films import Forecasts, Player, players, strips
from worldline.report.gather import Run, gather
from worldline.report.headline import Headline, finding_of, headline, why_not
from worldline.report.ranked import shown
from worldline.report.tables import INCOMPARABLE, duration, facts_of, format_number, tables
from worldline.schema import UsageError

TEMPLATES = Path(__file__).parent / "templates"


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
    names = _names(runs)
    gathered = [run for folder, name in zip(runs, names, strict=True) for run in _named(gather(folder), name)]
    page = _render(gathered)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _named(run: Run, name: str) -> list[Run]:
    """The run under this name; its other evaluations as runs of their own, if there is little else in its folder."""
    further = tuple(replace(one, name=f"{name}, {one.name} ahead") for one in run.further)
    alone = further and run.config is None and run.evaluation is None and run.ranking is None
    return [*further] if alone else [replace(run, name=name, further=further)]


def _names(runs: Sequence[Path]) -> list[str]:
    """Names of run folders that tell them apart: of folders of one name with their parents', then by number."""
    folders = [folder.resolve() for folder in runs]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in folders]
    seen = [names[:number].count(name) for number, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, seen, strict=True)]


# --- the page ---


def _players(runs: Sequence[Run]) -> dict[str, Player]:
    """The player of each run that keeps clips."""
    kept = [(run, run.forecasts) for run in runs if run.forecasts is not None and len(run.forecasts.real)]
    made = players([found for _, found in kept], [_rate(run, found) for run, found in kept])
    return {
        run.name: replace(player, origins=_origins(run, len(found.real)))
        for (run, found), player in zip(kept, made, strict=True)
    }


def _origins(run: Run, count: int) -> tuple[str, ...]:
    """Where the kept clips are from: the evaluation keeps some at even distances. Nothing without scores.npz."""
    if run.scores is None:
        return ()
    chosen = evenly(len(run.scores.episodes), count)
    return tuple(f"episode {run.scores.episodes[i]}, from frame {run.scores.starts[i]}" for i in chosen)


def _rate(run: Run, found: Forecasts) -> float | None:
    """Shown frames per second: a forecaster may predict only some of the recorded frames."""
    data = run.evaluation.data if run.evaluation else None
    return data.fps * (found.real.shape[1] - found.context) / data.horizon_frames if data else None


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
    seconds = _training_seconds(run)
    notes += [] if seconds is None else [f"Took {duration(seconds)}."]
    return [over_steps(title, drawn[title]) for title in sorted(drawn, key=lambda t: (t != "loss", t))], " ".join(notes)


def _training_seconds(run: Run) -> float | None:
    last = run.training[-1] if run.training else {}
    return float(last["seconds"]) if "seconds" in last else None


class Part(NamedTuple):
    """A study as the page shows it: what it found in each run, or why it found nothing."""

    id: str
    title: str
    found: dict[str, Finding | str]
    """Run -> its finding, or why there is none."""


FIRST = {"audit": "Does it follow the robot?", "uncertainty": "Does it know when it is unsure?"}
"""Studies that every page has a part for, also where they are not computed; others follow where one run has them."""


def studies(evaluations: Mapping[str, Evaluation]) -> list[Part]:
    """Group the findings of runs (name -> evaluation) by study."""
    titles = {**FIRST}
    for evaluation in evaluations.values():
        titles |= {one.id: one.title for one in evaluation.findings}
    return [
        Part(id, title, {run: finding_of(one, id) or why_not(one, id) for run, one in evaluations.items()})
        for id, title in titles.items()
    ]


def _cards(run: Run) -> tuple[list[Fact], list[Fact]]:
    about = model_card(run.model, run.config, run.environment, run.evaluation, _training_seconds(run))
    return about, data_card(run.model, run.config, run.evaluation)


def _headlines(runs: Sequence[Run]) -> dict[str, Headline]:
    return {run.name: headline(run.evaluation, run.scores) for run in runs if run.evaluation is not None}


@cache
def engine() -> jinja2.Environment:
    """What fills in the templates of pages."""
    loader, strict = jinja2.FileSystemLoader(TEMPLATES), jinja2.StrictUndefined
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "number": lambda value, unit: format_number(value, unit).replace("-", "\N{MINUS SIGN}"),
        "duration": duration,
        "facts": facts_of,
        "label": label_of,
        "chart": of_chart,
        "strips": strips,
        "breakable": lambda text: Markup(str(escape(text)).replace("_", "_<wbr>")),
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return made


def _evaluations(runs: Sequence[Run]) -> dict[str, Evaluation]:
    return {run.name: run.evaluation for run in runs if run.evaluation is not None}


def _curves(evaluation: Evaluation) -> list[Drawing]:
    return [over_time(evaluation, metric) for metric, rows in evaluation.curves.items() if rows]


def _render(runs: Sequence[Run]) -> str:
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    evaluations, every = _evaluations(runs), [*runs, *(one for run in runs for one in run.further)]
    return (
        engine()
        .get_template("page.html.j2")
        .render(
            runs=runs,
            metrics=METRICS,
            style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            # A page that may run this script and no other, and load nothing, keeps its promise in any browser.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            headlines=_headlines(every),
            headline=tables(evaluations, "headline"),
            further=tables(_evaluations(every[len(runs) :]), "headline"),
            tokens=tables(evaluations, "token"),
            players=_players(every),
            curves={name: _curves(found) for name, found in _evaluations(every).items()},
            studies=studies(evaluations),
            training={run.name: _losses(run) for run in runs},
            rankings={run.name: shown(run.ranking, run.films or ()) for run in runs if run.ranking is not None},
            cards={run.name: _cards(run) for run in runs},
            incomparable=INCOMPARABLE,
        )
    )
