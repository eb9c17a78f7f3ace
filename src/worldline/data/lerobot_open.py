"""Read the metadata of a LeRobot data set, v2.x or v3.0: cameras, state names, where every episode lies.

Only `meta/` and folder listings are read, plus a few tables to guess what the state dimensions are where no
statistics are stored. Faults go to a `Report`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from worldline.data.checks import Report, raise_problem, summarise
from worldline.data.lerobot import LerobotSource, Recording, read_table
from worldline.data.source import Conditioning
from worldline.data.states import guess_layout
from worldline.files import read_json
from worldline.schema import DataError, Episode, UsageError

_COLUMNS: dict[str, tuple[str, ...]] = {
    "state": ("observation.state",),
    "action": ("action",),
    "state+action": ("observation.state", "action"),
}
_GUESS_FROM = 8
"""Episodes whose values are looked at to guess the layout, where meta/ holds no statistics."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One episode as the metadata list it."""

    length: int
    recording: Recording


def looks_like_lerobot(root: Path) -> bool:
    """Tell whether a folder has LeRobot's meta/info.json."""
    return (root / "meta/info.json").exists()


def cameras(root: Path) -> tuple[str, ...]:
    """Keys of the video features, in the order of meta/info.json."""
    features = read_json(root / "meta/info.json").get("features", {})
    return tuple(key for key, feature in features.items() if feature.get("dtype") == "video")


def open_lerobot(
    root: Path,
    *,
    camera: str | None = None,
    conditioning: Conditioning = "state",
    allow_missing: bool = False,
    report: Report = raise_problem,
) -> LerobotSource:
    """Open a LeRobot data set.

    Raises `DataError` for bad metadata or missing files, `UsageError` for bad choices.
    """
    path = root / "meta/info.json"
    info = _info(path)
    key, version = _camera(path, camera), info["codebase_version"]
    columns = _COLUMNS[conditioning]
    dims = tuple(_dim(path, info, name) for name in columns)
    listed = (_listed_v3 if version == "v3.0" else _listed_v2)(root, info, key)
    entries, missing = _present(listed)
    if missing and not allow_missing:
        report(_missing(root, missing, len(listed)))
    names = _names(info, columns, dims)
    low, high = _ranges(root, columns, dims, entries, report)
    return LerobotSource(
        kind=f"lerobot-{version}",
        path=root,
        fps=float(info["fps"]),
        layout=guess_layout(names, low, high),
        episodes=tuple(
            Episode(index=i, length=entry.length, name=f"episode {entry.recording.number}")
            for i, entry in enumerate(entries)
        ),
        image_size=_image_size(info["features"][key].get("shape", (0, 0))),
        grid=None,
        left_out=tuple(missing),
        camera=key,
        columns=columns,
        dims=dims,
        recordings=tuple(entry.recording for entry in entries),
    )


def _info(path: Path) -> dict[str, Any]:
    info = read_json(path)
    version = info.get("codebase_version")
    if version not in ("v2.0", "v2.1", "v3.0"):
        expected = "codebase_version v2.0, v2.1 or v3.0"
        raise DataError(path, expected=expected, found=repr(version), fix="Convert it with LeRobot's tools.")
    needed = ("fps", "features", "data_path", "video_path")
    absent = [key for key in needed if not info.get(key)]
    if absent:
        raise DataError(path, expected=", ".join(needed), found=f"no {absent}", fix="Restore the file.")
    return info


def _image_size(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a feature whose channels come first or last."""
    channels_first = len(shape) == 3 and shape[0] in (1, 3)
    return (int(shape[-2]), int(shape[-1])) if channels_first else (int(shape[0]), int(shape[1]))


def _camera(path: Path, wanted: str | None) -> str:
    available = cameras(path.parents[1])
    if not available:
        raise DataError(
            path,
            expected="a camera stored as video",
            found="none",
            fix="Convert images in tables to video first (LeRobot's own tools do).",
        )
    if wanted is None and len(available) == 1:
        return available[0]
    matches = [key for key in available if wanted is not None and (key == wanted or key.endswith(f".{wanted}"))]
    if len(matches) == 1:
        return matches[0]
    problem = "several cameras, choose one" if wanted is None else f"no single camera is called {wanted!r}"
    raise UsageError(f"{path.parents[1]}: {problem}; available: {', '.join(available)}")


def _dim(path: Path, info: dict[str, Any], name: str) -> int:
    feature = info["features"].get(name)
    if feature is None:
        numeric = [key for key, value in info["features"].items() if value.get("dtype") != "video"]
        raise UsageError(f"{path}: the data set has no {name!r}; it has {', '.join(numeric)}")
    return int(np.prod(feature.get("shape") or (1,)))


def _names(info: dict[str, Any], columns: tuple[str, ...], dims: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the dimensions; `state.0` and so on where the metadata give none or another number of them."""
    names: list[str] = []
    for column, dim in zip(columns, dims, strict=True):
        prefix = column.rsplit(".", 1)[-1]
        found = _flatten(info["features"][column].get("names"))
        if len(found) != dim or len(set(found)) != dim:
            found = [f"{prefix}.{i}" for i in range(dim)]
        elif len(columns) > 1:
            found = [f"{prefix}.{name}" for name in found]
        names.extend(found)
    return tuple(names)


def _flatten(names: Any) -> list[str]:
    match names:
        case str():
            return [names]
        case list():
            return [name for item in names for name in _flatten(item)]
        case dict() if all(isinstance(value, int) for value in names.values()):
            return sorted(names, key=names.__getitem__)
        case dict():
            return [name for item in names.values() for name in _flatten(item)]
        case _:
            return []


def _listed_v2(root: Path, info: dict[str, Any], camera: str) -> list[_Entry]:
    path = root / "meta/episodes.jsonl"
    if not path.exists():
        raise DataError(path, expected="the list of episodes", found="no file", fix="Restore it.")
    entries: list[_Entry] = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            number, length = int(row["episode_index"]), int(row["length"])
            keys = {
                "episode_index": number,
                "episode_chunk": number // int(info.get("chunks_size", 1000)),
                "video_key": camera,
            }
            recording = Recording(
                number=number,
                table=root / info["data_path"].format(**keys),
                video=root / info["video_path"].format(**keys),
                first_frame=0,
            )
        except (ValueError, KeyError, TypeError) as error:
            found = f"{type(error).__name__}: {error} in line {line}"
            raise DataError(path, expected="episode_index and length", found=found, fix="Restore it.") from error
        entries.append(_Entry(length=length, recording=recording))
    return entries


def _listed_v3(root: Path, info: dict[str, Any], camera: str) -> list[_Entry]:
    folder = root / "meta/episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise DataError(folder, expected="parquet files that list the episodes", found="none", fix="Restore them.")
    video = f"videos/{camera}"
    columns = [
        *("episode_index", "length", "data/chunk_index", "data/file_index"),
        *(f"{video}/{key}" for key in ("chunk_index", "file_index", "from_timestamp")),
    ]
    entries: list[_Entry] = []
    for path in files:
        try:
            rows = parquet.read_table(path, columns=columns).select(columns).to_pylist()
            entries.extend(_entry_v3(root, info, camera, row) for row in rows)
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise DataError(path, expected=f"columns {columns}", found=found, fix="Restore the file.") from error
    return sorted(entries, key=lambda entry: entry.recording.number)


def _entry_v3(root: Path, info: dict[str, Any], camera: str, row: dict[str, Any]) -> _Entry:
    video = f"videos/{camera}"
    table_keys = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    video_keys = {"chunk_index": row[f"{video}/chunk_index"], "file_index": row[f"{video}/file_index"]}
    recording = Recording(
        number=int(row["episode_index"]),
        table=root / info["data_path"].format(**table_keys),
        video=root / info["video_path"].format(video_key=camera, **video_keys),
        first_frame=round(row[f"{video}/from_timestamp"] * float(info["fps"])),
    )
    return _Entry(length=int(row["length"]), recording=recording)


def _present(listed: list[_Entry]) -> tuple[list[_Entry], list[str]]:
    """Split what is listed into what has both files and, in words, what has not. Lists every folder once."""
    files = {path for entry in listed for path in (entry.recording.table, entry.recording.video)}
    existing = {path for folder in {p.parent for p in files} if folder.is_dir() for path in folder.iterdir()}
    present: list[_Entry] = []
    missing: list[str] = []
    for entry in listed:
        paths = (entry.recording.table, entry.recording.video)
        absent = [path.name for path in paths if path not in existing]
        if absent:
            missing.append(f"episode {entry.recording.number} ({' '.join(absent)})")
        else:
            present.append(entry)
    return present, missing


def _missing(root: Path, missing: list[str], count: int) -> DataError:
    return DataError(
        root,
        expected=f"the table and video of all {count} listed episodes",
        found=f"missing {summarise(missing)}",
        fix="Fetch the rest, or open with allow_missing to use what is there.",
    )


def _ranges(
    root: Path, columns: tuple[str, ...], dims: tuple[int, ...], entries: list[_Entry], report: Report
) -> tuple[list[float], list[float]]:
    """Smallest and largest value per dimension, from meta/stats.json or else from a few tables."""
    stats = read_json(root / "meta/stats.json") if (root / "meta/stats.json").exists() else {}
    try:
        low, high = ([float(x) for c in columns for x in np.ravel(stats[c][key])] for key in ("min", "max"))
        if len(low) == len(high) == sum(dims):
            return low, high
    except (KeyError, TypeError, ValueError):
        pass
    tables = sorted({entry.recording.table for entry in entries})
    lows, highs = [np.full(sum(dims), 0.0)], [np.full(sum(dims), 0.0)]
    for path in tables[:: max(1, len(tables) // _GUESS_FROM)][:_GUESS_FROM]:
        try:
            values = read_table(path, columns, dims)[0]
        except DataError as problem:
            report(problem)
            continue
        if len(values):
            with np.errstate(all="ignore"):
                lows.append(np.nan_to_num(values).min(axis=0))
                highs.append(np.nan_to_num(values).max(axis=0))
    return np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()
