"""The content of a run folder, read for a report. A missing part is None, with the reason in `absent`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from worldline.evaluation.result import Evaluation
from worldline.files import read_json, read_npz
from worldline.schema import DataError, UsageError

_AGAIN = "Write the file again, or delete it."


@dataclass(frozen=True, kw_only=True)
class Training:
    """The logged course of a training run."""

    series: dict[str, list[tuple[float, float]]]
    """`train/...` and `val/...` -> (step, value), in the order logged."""
    seconds: float | None
    """Time of the last logged step."""
    unfinished: bool
    """Whether the last line was left out, because the writer had not finished it."""


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Example forecasts beside what really happened. Frames include the context, which comes first."""

    real: UInt8[np.ndarray, "n t h w 3"]
    rows: dict[str, UInt8[np.ndarray, "n t h w 3"]]
    context: int
    """Frames the forecasters were given."""
    psnr: Float[np.ndarray, " n"]
    """PSNR in dB of each clip's forecast by the first row."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a report shows of one run folder."""

    name: str
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    training: Training | None
    evaluation: Evaluation | None
    forecasts: Forecasts | None
    absent: dict[str, str]
    """Names of the fields that are None -> why."""


def gather(folder: Path) -> Run:
    """Read a run folder. Raises `UsageError` where there is none of a run, `DataError` for a file that is damaged."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give run folders, as `worldline train` makes them")
    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "config": ("config.json", read_json),
        "environment": ("environment.json", read_json),
        "training": ("metrics.jsonl", _training),
        "evaluation": ("evaluation/metrics.json", Evaluation.load),
        "forecasts": ("evaluation/forecasts.npz", _forecasts),
    }
    found = {part: read(folder / name) if (folder / name).exists() else None for part, (name, read) in readers.items()}
    absent = {part: f"{name} is not in the run folder" for part, (name, _) in readers.items() if found[part] is None}
    if len(absent) == len(readers):
        names = ", ".join(name for name, _ in readers.values())
        raise UsageError(f"{folder} is no run folder: it has none of {names}")
    return Run(name=folder.resolve().name, absent=absent, **found)


def _training(path: Path) -> Training:
    series: dict[str, list[tuple[float, float]]] = {}
    seconds = None
    # A run that is being written, or was killed, may end in half a line.
    whole, _, unfinished = path.read_text(encoding="utf-8").rpartition("\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            found = f"{line.strip()[:80]} in line {number}"
            raise _damaged(path, "JSON objects with a number `step`, one a line", found) from error
        seconds = record.get("seconds", seconds)
        for name, value in record.items():
            if name.startswith(("train/", "val/")) and isinstance(value, int | float):
                series.setdefault(name, []).append((step, float(value)))
    return Training(series=series, seconds=seconds, unfinished=bool(unfinished))


def _forecasts(path: Path) -> Forecasts:
    arrays = read_npz(path, what="a NumPy archive of forecasts", fix=_AGAIN)
    try:
        real, context, psnr = arrays["real"], int(arrays["context"]), arrays["psnr"].astype(np.float64)
        rows = {str(name): arrays[f"forecast_{i}"] for i, name in enumerate(arrays["rows"])}
    except KeyError as error:
        raise _damaged(path, "arrays real, rows, context, psnr and forecast_0, ...", f"no {error.args[0]}") from error
    for name, frames in {"real": real, **rows}.items():
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape != real.shape or frames.shape[-1] != 3:
            expected = f"`{name}` as uint8 n t h w 3 like `real` {real.shape}"
            raise _damaged(path, expected, f"{frames.dtype} {frames.shape}")
    if psnr.shape != real.shape[:1] or not 0 < context < real.shape[1]:
        expected = f"psnr for each of {len(real)} clips and 0 < context < {real.shape[1]} frames"
        raise _damaged(path, expected, f"psnr of shape {psnr.shape} and context {context}")
    return Forecasts(real=real, rows=rows, context=context, psnr=psnr)


def _damaged(path: Path, expected: str, found: str) -> DataError:
    return DataError(path, expected=expected, found=found, fix=_AGAIN)
