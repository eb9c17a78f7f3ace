"""What a run folder holds for a page. Only files are read.

A part that a folder lacks is None, with the reason in `Run.absent`, and the page says so.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldline.evaluation.receipt import Receipt
from worldline.evaluation.result import Evaluation
from worldline.files import read_json, read_npz
from worldline.ranking.result import FILE, FILMS, Film, Ranking, read_films
from worldline.ranking.result import FOLDER as RANKING
from worldline.report.cards import Model
from worldline.report.films import Forecasts, Map
from worldline.report.headline import Scores
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
    model: Model | None
    evaluation: Evaluation | None
    scores: Scores | None
    forecasts: Forecasts | None
    receipt: "Shown | None"
    absent: dict[str, str]
    """Names of the fields that are None -> why."""
    ranking: Ranking | None = None
    """Of policies in it, as `worldline rank` writes it."""
    films: tuple[Film, ...] | None = None
    """Of that ranking."""
    further: "tuple[Run, ...]" = ()
    """Its other evaluations, as `evaluate --horizon 10s` writes them beside the first: `evaluation_10s`."""


class Shown(NamedTuple):
    """A receipt, and whether its checksums are those of what lies beside it."""

    path: Path
    content: dict[str, Any]
    wrong: str
    """What does not agree; empty if all does."""

    @property
    def quoted(self) -> str:
        """Its path, as a shell takes it."""
        return shlex.quote(str(self.path))

    @property
    def shown(self) -> dict[str, Any]:
        """The content, without what the page says elsewhere and without places on somebody's machine."""
        return {name: value for name, value in self.content.items() if name not in ("about", "command", "folder")}


def gather(folder: Path) -> Run:
    """Read a run folder, or a folder that holds a ranking alone (what `worldline rank` was told by `--out`).

    Raises `UsageError` where there is nothing of a run, `DataError` for a file that is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give run folders, as `worldline train` makes them")
    ranked = "" if (folder / FILE).exists() else f"{RANKING}/"
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "config": ("config.json", read_json),
        "environment": ("environment.json", read_json),
        "training": ("metrics.jsonl", lambda _: RunDir(folder).logged()),
        **_evidence("evaluation"),
        "ranking": (ranked + FILE, Ranking.load),
        "films": (ranked + FILMS, read_films),
    }
    found, absent = _read(folder, readers)
    if len(absent) == len(readers) and not any(folder.glob("evaluation_*/metrics.json")):
        names = ", ".join(name for name, _ in readers.values())
        raise UsageError(f"{folder} is no run folder: it has none of {names}")
    found["model"] = Model.newest(folder)
    if found["model"] is None:
        absent["model"] = "the run folder has no checkpoint"
    unfinished = bool(found["training"]) and not RunDir(folder).metrics.read_bytes().endswith(b"\n")
    name = folder.resolve().name
    return Run(name=name, absent=absent, unfinished=unfinished, further=_further(folder), **found)


def _evidence(folder: str) -> dict[str, tuple[str, Callable[[Path], Any]]]:
    """The files of an evaluation, and what reads them."""
    return {
        "evaluation": (f"{folder}/metrics.json", Evaluation.load),
        "scores": (f"{folder}/scores.npz", _scores),
        "forecasts": (f"{folder}/forecasts.npz", _forecasts),
        "receipt": (f"{folder}/receipt.json", _receipt),
    }


def _read(
    folder: Path, readers: Mapping[str, tuple[str, Callable[[Path], Any]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is there of these parts, None where it is not, and why."""
    found = {part: read(folder / name) if (folder / name).exists() else None for part, (name, read) in readers.items()}
    absent = {part: f"{name} is not in the run folder" for part, (name, _) in readers.items() if found[part] is None}
    return found, absent


def _further(run: Path) -> tuple[Run, ...]:
    """Evaluations beside the first one, named by what their folder adds: nothing but the evaluation is read."""
    parts, others = ("config", "environment", "training", "model"), []
    nothing: dict[str, Any] = dict.fromkeys(parts)
    for path in sorted(run.glob("evaluation_*/metrics.json")):
        found, absent = _read(run, _evidence(path.parent.name))
        absent |= dict.fromkeys(parts, "this is one evaluation of a run, which holds it")
        name = path.parent.name.removeprefix("evaluation_")
        others.append(Run(name=name, absent=absent, unfinished=False, **nothing, **found))
    return tuple(others)


def _receipt(path: Path) -> Shown:
    """Read a receipt. One that does not agree with what lies beside it is shown all the same, with what is wrong."""
    content = read_json(path)
    try:
        Receipt.load(path).refuse_other_files(path)
    except DataError as error:
        return Shown(path, content, str(error))
    return Shown(path, content, "")


def _scores(path: Path) -> Scores:
    """Read the numbers of every clip: `episode` and `start` of each, and `ROW/METRIC` as `n f`."""
    arrays = read_npz(path, what="a NumPy archive of scores", fix=_AGAIN)
    values = {(row, metric): arrays[name] for name in arrays for row, slash, metric in [name.rpartition("/")] if slash}
    episodes, starts = arrays.get("episode"), arrays.get("start")
    alike = [x.shape[:1] == episodes.shape for x in values.values()] if episodes is not None else []
    if episodes is None or starts is None or starts.shape != episodes.shape or not all(alike):
        shapes = {name: f"{x.dtype} {x.shape}" for name, x in arrays.items()}
        expected = "episode and start of each clip, and arrays ROW/METRIC of as many clips"
        raise DataError(path, expected=expected, found=str(shapes)[:400], fix=_AGAIN)
    return Scores(episodes=episodes, starts=starts, values=values)


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
        maps = _maps(arrays)
    except KeyError as error:
        expected = (
            "arrays real, rows, context, psnr and forecast_0, ...; with maps also map_labels, map_units, map_0, ..."
        )
        raise DataError(path, expected=expected, found=f"no {error.args[0]}", fix=_AGAIN) from error
    alike = all(x.dtype == np.uint8 and x.shape == (*real.shape[:4], 3) for x in (real, *rows.values()))
    alike = alike and rows and psnr.shape == real.shape[:1] and 0 < context < real.shape[1]
    after = (len(real), real.shape[1] - context)
    if not alike or any(one.values.shape[:2] != after or one.values.ndim != 4 for one in maps):
        shapes = {name: f"{x.dtype} {x.shape}" for name, x in {"real": real, **rows, "psnr": psnr}.items()}
        shapes |= {one.id: f"{one.values.dtype} {one.values.shape}" for one in maps}
        expected = (
            "real and forecasts as uint8 n t h w 3 of one shape, psnr of each clip, 0 < context < t, maps n f a b"
        )
        raise DataError(path, expected=expected, found=f"{shapes} and context {context}", fix=_AGAIN)
    return Forecasts(real=real, rows=rows, context=context, psnr=psnr, maps=maps)


def _maps(arrays: Mapping[str, np.ndarray]) -> tuple[Map, ...]:
    ids = [str(id) for id in arrays.get("maps", ())]
    labels, units = (arrays[name] if ids else () for name in ("map_labels", "map_units"))
    named = zip(ids, labels, units, strict=True)
    return tuple(
        Map(id, str(label), str(unit), arrays[f"map_{i}"].astype(np.float64))
        for i, (id, label, unit) in enumerate(named)
    )
