"""What a run folder holds for a page. Only files are read.

A part that a folder lacks is None, with the reason in `Run.absent`, and the page says so.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldline.evaluation.receipt import Receipt
from worldline.evaluation.result import Evaluation
from worldline.files import read_json, read_npz
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


def gather_all(folder: Path, name: str) -> list[Run]:
    """A run folder and, as runs of their own, its evaluations to a horizon (`evaluation_10s`). Raises as `gather`."""
    beside = [path.parent for path in sorted(folder.glob("evaluation_*/metrics.json"))]
    alone = not any((folder / name).exists() for name in ("config.json", "evaluation"))
    runs = [] if beside and alone else [replace(gather(folder), name=name)]
    return [*runs, *(_to_a_horizon(name, path) for path in beside)]


def _to_a_horizon(name: str, evaluation: Path) -> Run:
    readers = {"scores": _scores, "forecasts": _forecasts, "receipt": _receipt}
    files = {"scores": "scores.npz", "forecasts": "forecasts.npz", "receipt": "receipt.json"}
    paths = {part: evaluation / name for part, name in files.items()}
    found = {part: read(paths[part]) if paths[part].exists() else None for part, read in readers.items()}
    absent = {part: f"{paths[part].name} is not in {evaluation.name}" for part in readers if found[part] is None}
    absent |= dict.fromkeys(("config", "environment", "training", "model"), f"that is shown with the run, {name}")
    return Run(
        name=f"{name}, {evaluation.name.removeprefix('evaluation_')} ahead",
        config=None,
        environment=None,
        training=None,
        unfinished=False,
        model=None,
        evaluation=Evaluation.load(evaluation / "metrics.json"),
        absent=absent,
        **found,
    )


def gather(folder: Path) -> Run:
    """Read a run folder. Raises `UsageError` where there is none of a run, `DataError` for a file that is damaged."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give run folders, as `worldline train` makes them")
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "config": ("config.json", read_json),
        "environment": ("environment.json", read_json),
        "training": ("metrics.jsonl", lambda _: RunDir(folder).logged()),
        "evaluation": ("evaluation/metrics.json", Evaluation.load),
        "scores": ("evaluation/scores.npz", _scores),
        "forecasts": ("evaluation/forecasts.npz", _forecasts),
        "receipt": ("evaluation/receipt.json", _receipt),
    }
    found = {part: read(folder / name) if (folder / name).exists() else None for part, (name, read) in readers.items()}
    absent = {part: f"{name} is not in the run folder" for part, (name, _) in readers.items() if found[part] is None}
    if len(absent) == len(readers):
        names = ", ".join(name for name, _ in readers.values())
        raise UsageError(f"{folder} is no run folder: it has none of {names}")
    found["model"] = Model.newest(folder)
    if found["model"] is None:
        absent["model"] = "the run folder has no checkpoint"
    unfinished = bool(found["training"]) and not RunDir(folder).metrics.read_bytes().endswith(b"\n")
    return Run(name=folder.resolve().name, absent=absent, unfinished=unfinished, **found)


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
