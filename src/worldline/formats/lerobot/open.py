"""Read the metadata of a LeRobot data set, v2.x or v3.0: cameras, state names, where every episode lies.

Metadata are checked where they come in: every value that is used has the type and range it should have, or is named.
Only `meta/` and folder listings are read, a few tables to guess what the state dimensions are, and a video's header
for the size of the pictures. Faults go to a `Report`.
"""

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import escape
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from worldline.files import read_json, unreadable
from worldline.formats.checks import LeavingOut, Report, adapter, raise_problem, sound_episodes, summarise, validated
from worldline.formats.lerobot.source import LerobotSource, Recording, read_table
from worldline.formats.lerobot.tables import read_columns
from worldline.formats.plausible import usual_range
from worldline.formats.states import guess_layout
from worldline.schema import DataError, Episode, UsageError

_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Numeric columns that are never meant as states."""
_GUESS_FROM = 8
"""Tables whose values are looked at to guess the layout. meta/stats.json is not believed: it is often of other data."""

_LONGEST_NAME = 255
"""Bytes of a file's name that file systems allow."""

_Index = Annotated[int, Field(ge=0, le=10**9)]
_Length = Annotated[int, Field(ge=0, le=10**7)]


@dataclass(frozen=True, kw_only=True)
class _Meta:
    """What is used of meta/info.json."""

    codebase_version: str
    fps: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)]
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str | None = None
    chunks_size: Annotated[int, Field(gt=0)] = 1000


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line of meta/episodes.jsonl (v2.x)."""

    episode_index: _Index
    length: _Length


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of meta/episodes/*.parquet (v3.0)."""

    episode_index: _Index
    length: _Length
    data_chunk: _Index
    data_file: _Index
    video_chunk: _Index = 0
    video_file: _Index = 0
    begins: Annotated[float, Field(ge=0, le=10**7, allow_inf_nan=False)] = 0.0


@dataclass(frozen=True, kw_only=True)
class _Shaped:
    """The shape of a feature."""

    shape: Annotated[tuple[Annotated[int, Field(gt=0, le=100_000)], ...], Field(max_length=4)] | None = None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One episode as the metadata list it."""

    length: int
    recording: Recording


def looks_like_lerobot(root: Path) -> bool:
    """Tell whether a folder has LeRobot's meta/info.json."""
    return (root / "meta/info.json").exists()


def cameras(root: Path) -> dict[str, str]:
    """Keys of the cameras in the order of meta/info.json, each with why it is not taken unasked (or nothing).

    Depth maps are not taken unasked, nor are cameras of which no file exists.
    """
    path = root / "meta/info.json"
    meta = _meta(path)
    keys = [key for key, feature in meta.features.items() if feature.get("dtype") in ("video", "image")]
    return {key: _why_not(root, meta, key) for key in keys}


def open_lerobot(
    root: Path,
    *,
    camera: str | None = None,
    columns: tuple[str, ...] = ("observation.state",),
    allow_missing: bool = False,
    report: Report = raise_problem,
) -> LerobotSource:
    """Open a LeRobot data set; `columns` of its tables, side by side, are the states.

    Raises `DataError` for bad metadata or missing files, `UsageError` for bad choices.
    """
    path = root / "meta/info.json"
    meta = _meta(path)
    key = _camera(root, camera)
    leaving = LeavingOut(allowed=allow_missing, report=report)
    listed = (_listed_v3 if meta.codebase_version == "v3.0" else _listed_v2)(root, meta, key, leaving)
    dims = _dims(path, meta, columns)
    entries = _present(root, _once_and_not_empty(root, listed, leaving), leaving)
    names = _names(meta, columns, dims)
    source = LerobotSource(
        kind=f"lerobot-{meta.codebase_version}",
        path=root,
        fps=meta.fps,
        layout=guess_layout(names, *_ranges(columns, dims, entries, meta.fps)),
        episodes=tuple(
            Episode(
                index=i,
                length=entry.length,
                name=f"episode {entry.recording.number}",
                number=entry.recording.number,
            )
            for i, entry in enumerate(entries)
        ),
        image_size=stated_size(path, meta.features[key]),
        left_out=tuple(leaving.lines),
        camera=key,
        columns=columns,
        dims=dims,
        places=tuple(entry.recording for entry in entries),
    )
    return _sound(replace(source, image_size=_stored_size(source) or source.image_size), leaving)


def _sound(source: LerobotSource, leaving: LeavingOut) -> LerobotSource:
    """Leave out damaged episodes, where that is allowed."""
    kept = sound_episodes(source.episodes, source.check, leaving)
    return replace(
        source,
        episodes=tuple(replace(source.episodes[i], index=new) for new, i in enumerate(kept)),
        places=tuple(source.places[i] for i in kept),
        left_out=tuple(leaving.lines),
    )


def _meta(path: Path) -> _Meta:
    content = read_json(path)
    version = content.get("codebase_version")
    if version not in ("v2.0", "v2.1", "v3.0"):
        raise DataError(
            path,
            expected="codebase_version v2.0, v2.1 or v3.0",
            found=repr(version),
            fix="Convert the data set with the scripts of the lerobot package (convert_dataset_v1_to_v2 and on).",
            kind="format",
        )
    return validated(path, _Meta, content)


def _why_not(root: Path, meta: _Meta, key: str) -> str:
    feature = meta.features[key]
    facts = {**feature, **(feature["info"] if isinstance(feature.get("info"), dict) else {})}
    if any(facts.get(name) is True for name in ("is_depth_map", "video.is_depth_map")):
        return "a depth map"
    shape = feature.get("shape")
    if isinstance(shape, list) and len(shape) == 3 and 1 in (shape[0], shape[-1]):
        return "one channel, as a depth map"
    if feature["dtype"] == "video" and not any(True for _ in _videos(root, meta, key)):
        return "no file"
    return ""


def _videos(root: Path, meta: _Meta, key: str) -> Iterator[Path]:
    """The videos of a camera that exist, wherever the template puts them."""
    if meta.video_path is not None:
        yield from root.glob(_filled(root / "meta/info.json", meta.video_path, _Stars(video_key=escape(key))))


def _described(root: Path, key: str, why_not: str) -> str:
    """A camera in words: size, kind and number of files."""
    meta = _meta(root / "meta/info.json")
    feature = meta.features[key]
    size = "x".join(str(side) for side in stated_size(root / "meta/info.json", feature))
    kind = why_not if why_not and why_not != "no file" else "colour"
    in_tables = feature["dtype"] == "image"
    files = "images in the tables" if in_tables else f"{sum(1 for _ in _videos(root, meta, key))} videos"
    return f"{key} ({size}, {kind}, {files})"


class _Stars(dict[str, Any]):
    """Fills every other field of a path template with a star, whatever its format."""

    def __missing__(self, name: str) -> "_Star":
        return _Star()


class _Star:
    def __format__(self, spec: str) -> str:
        return "*"


def _filled(path: Path, template: str, values: dict[str, Any]) -> str:
    """Fill a path template of meta/info.json."""
    try:
        place = template.format_map(values)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        found = f"{template!r} ({type(error).__name__}: {error})"
        expected = "a path with fields such as {episode_index:06d}"
        raise DataError(path, expected=expected, found=found, fix="Restore the file.", kind="metadata") from error
    parts = Path(place).parts
    too_long = any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts)
    if not parts or "\0" in place or Path(place).is_absolute() or ".." in parts or too_long:
        expected = "a path below the data set's folder"
        raise DataError(path, expected=expected, found=f"{place[:80]!r}", fix="Restore the file.", kind="metadata")
    return place


def _camera(root: Path, wanted: str | None) -> str:
    available = cameras(root)
    if not available:
        expected = "a camera, stored as video or as images"
        raise DataError(
            root / "meta/info.json", expected=expected, found="none", fix="Record one, or use another data set."
        )
    usual = [key for key, why_not in available.items() if not why_not]
    matches = [key for key in available if key == wanted]
    if wanted is None and len(usual) <= 1:
        matches = usual or (list(available) if len(available) == 1 else [])
    elif wanted is not None and not matches:
        matches = [key for key in available if key.endswith(f".{wanted}")]
    if len(matches) == 1:
        return matches[0]
    problem = "several cameras, choose one" if wanted is None else f"no single camera is called {wanted!r}"
    described = [_described(root, key, why_not) for key, why_not in available.items()]
    raise UsageError(f"{root}: {problem} (--camera, in recipes --data.camera): {'; '.join(described)}")


def _dims(path: Path, meta: _Meta, columns: tuple[str, ...]) -> tuple[int, ...]:
    if len(set(columns)) != len(columns):
        raise UsageError(f"state keys {', '.join(columns)}: each can be given once")
    return tuple(_dim(path, meta, name) for name in columns)


def _dim(path: Path, meta: _Meta, name: str) -> int:
    feature = meta.features.get(name)
    if feature is None or feature.get("dtype") in ("video", "image", "string"):
        others = ("video", "image", "string")
        numeric = [k for k, f in meta.features.items() if f.get("dtype") not in others and k not in _BOOKKEEPING]
        problem = f"has no {name!r}" if feature is None else f"holds no numbers in {name!r}"
        raise UsageError(
            f"{path}: the data set {problem}; choose its states by name, one or several joined (--state-keys, in "
            f"recipes --data.state-keys): {', '.join(numeric) or 'it has none'}"
        )
    dim = prod(validated(path, _Shaped, feature, f"features.{name}").shape or ())
    if dim > 100_000:
        raise DataError(path, expected="a state", found=f"{name} of {dim} values", fix="Correct its shape.")
    return dim


def _names(meta: _Meta, columns: tuple[str, ...], dims: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the dimensions; `state.0` and so on where the metadata give none or another number of them."""
    names: list[str] = []
    last = [column.rsplit(".", 1)[-1] for column in columns]
    for column, dim, end in zip(columns, dims, last, strict=True):
        prefix = end if last.count(end) == 1 else column
        found = _flatten(meta.features[column].get("names"))
        if len(found) != dim or len(set(found)) != dim:
            found = [f"{prefix}.{i}" for i in range(dim)]
        elif len(columns) > 1:
            found = [f"{prefix}.{name}" for name in found]
        names.extend(found)
    return tuple(names)


def stated_names(root: Path, column: str) -> list[str]:
    """The names that the metadata give to a column's dimensions, as many as they are."""
    return _flatten(_meta(root / "meta/info.json").features[column].get("names"))


def _flatten(names: Any) -> list[str]:
    match names:
        case str():
            return [names]
        case list():
            return [name for item in names for name in _flatten(item)]
        case dict() if names and all(type(value) is int for value in names.values()):
            return sorted(names, key=names.__getitem__)
        case dict():
            return [name for item in names.values() for name in _flatten(item)]
        case _:
            return []


def _listed_v2(root: Path, meta: _Meta, camera: str, leaving: LeavingOut) -> list[_Entry]:
    path = root / "meta/episodes.jsonl"
    try:
        # By line feeds alone: a task may hold other characters that Python takes for the end of a line.
        lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    except (OSError, ValueError) as error:
        raise unreadable(path, expected="the list of episodes", found=str(error), fix="Restore it.") from error
    entries: list[_Entry] = []
    has_video = meta.features[camera]["dtype"] == "video"
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        with leaving.around(f"line {number} of {path.name}"):
            line = _line(path, number, text)
            keys = {
                "episode_index": line.episode_index,
                "episode_chunk": line.episode_index // meta.chunks_size,
                "video_key": camera,
            }
            recording = Recording(
                number=line.episode_index,
                root=root,
                table=root / _filled(root / "meta/info.json", meta.data_path, keys),
                video=root / _video_place(root, meta, keys) if has_video else None,
            )
            entries.append(_Entry(length=line.length, recording=recording))
    return entries


def _line(path: Path, number: int, text: bytes) -> _Line:
    try:
        return adapter(_Line).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f"{first['msg']}{f' ({where})' if where else ''} in line {number}"
        raise unreadable(
            path, expected="episode_index and length", found=found, fix="Restore it.", kind="metadata"
        ) from error


def _video_place(root: Path, meta: _Meta, keys: dict[str, Any]) -> str:
    path = root / "meta/info.json"
    if meta.video_path is None:
        found = "none, though a camera is said to be video"
        raise DataError(path, expected="video_path", found=found, fix="Restore the file.", kind="metadata")
    return _filled(path, meta.video_path, keys)


def _listed_v3(root: Path, meta: _Meta, camera: str, leaving: LeavingOut) -> list[_Entry]:
    folder = root / "meta/episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise DataError(folder, expected="parquet files that list the episodes", found="none", fix="Restore them.")
    columns = {
        "episode_index": "episode_index",
        "length": "length",
        "data_chunk": "data/chunk_index",
        "data_file": "data/file_index",
    }
    if meta.features[camera]["dtype"] == "video":
        columns |= {
            "video_chunk": f"videos/{camera}/chunk_index",
            "video_file": f"videos/{camera}/file_index",
            "begins": f"videos/{camera}/from_timestamp",
        }
    entries: list[_Entry] = []
    for path in files:
        with leaving.around(f"what {path.name} lists"):
            table = read_columns(path, tuple(columns.values()))
            for i, row in enumerate(table.to_pylist()):
                with leaving.around(f"row {i} of {path.name}"):
                    values = {name: row[column] for name, column in columns.items()}
                    entry = validated(path, _Row, values, f"row {i}")
                    entries.append(_entry_v3(root, meta, camera, entry, has_video="begins" in columns))
    return entries


def _entry_v3(root: Path, meta: _Meta, camera: str, row: _Row, *, has_video: bool) -> _Entry:
    info = root / "meta/info.json"
    table = _filled(info, meta.data_path, {"chunk_index": row.data_chunk, "file_index": row.data_file})
    keys = {"video_key": camera, "chunk_index": row.video_chunk, "file_index": row.video_file}
    recording = Recording(
        number=row.episode_index,
        root=root,
        table=root / table,
        video=root / _video_place(root, meta, keys) if has_video else None,
        begins=row.begins if has_video else None,
    )
    return _Entry(length=row.length, recording=recording)


def _numbered(entries: list[_Entry]) -> list[_Entry]:
    """Where videos are shared (v3.0), count the frames before each episode in its video, and of all episodes there."""
    if not any(entry.recording.begins is not None for entry in entries):
        return entries
    done: Counter[Path | None] = Counter()
    total: Counter[Path | None] = Counter()
    for entry in entries:
        total[entry.recording.video] += entry.length
    numbered: list[_Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.recording.begins or 0.0, entry.recording.number)):
        video = entry.recording.video
        recording = replace(entry.recording, first_frame=done[video], frames_in_file=total[video])
        numbered.append(replace(entry, recording=recording))
        done[video] += entry.length
    return sorted(numbered, key=lambda entry: entry.recording.number)


def _once_and_not_empty(root: Path, entries: list[_Entry], leaving: LeavingOut) -> list[_Entry]:
    """Use an episode that is listed twice once, as it is listed last; leave out what has no frame."""
    last = {entry.recording.number: entry for entry in entries}
    for number, times in Counter(entry.recording.number for entry in entries).items():
        if times > 1:
            what = f"episode {number} (listed {times} times, used once)"
            leaving.leave(what, _surplus(root, "every episode once", what, "duplicate"), harmless=True)
        if last[number].length == 0:
            what = f"episode {number} (of no frame)"
            leaving.leave(what, _surplus(root, "episodes with frames", what, "empty_episode"), harmless=True)
    return _numbered([entry for entry in last.values() if entry.length > 0])


def _surplus(root: Path, expected: str, found: str, kind: str) -> DataError:
    fix = "Take the surplus line out of the list of episodes in meta/; it is left out here."
    return DataError(root / "meta", expected=expected, found=found, fix=fix, kind=kind)


def _present(root: Path, listed: list[_Entry], leaving: LeavingOut) -> list[_Entry]:
    """Leave out what has not both files. Lists every folder once."""
    files = {path for entry in listed for path in _files(entry)}
    existing = {path for folder in {p.parent for p in files} for path in _inside(folder)}
    absent = {i: [p.name for p in _files(entry) if p not in existing] for i, entry in enumerate(listed)}
    missing = [f"episode {listed[i].recording.number} ({' '.join(names)})" for i, names in absent.items() if names]
    if missing and not leaving.allowed:
        raise _missing(root, f"all {len(listed)} listed episodes", summarise(missing))
    for what in missing:
        leaving.leave(what, _missing(root, "every listed episode", what))
    return [entry for i, entry in enumerate(listed) if not absent[i]]


def _files(entry: _Entry) -> list[Path]:
    video = entry.recording.video
    return [entry.recording.table] if video is None else [entry.recording.table, video]


def _inside(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _missing(root: Path, of: str, missing: str) -> DataError:
    return DataError(
        root,
        expected=f"the table and video of {of}",
        found=f"missing {missing}",
        fix="Fetch the rest, or leave them out with --allow-missing (in recipes --data.allow-missing).",
        kind="missing_files",
    )


def _ranges(
    columns: tuple[str, ...], dims: tuple[int, ...], entries: list[_Entry], fps: float
) -> tuple[list[float], list[float]]:
    """Smallest and largest plausible value per dimension in a few tables. What is wrong with one is said on reading."""
    tables, read = sorted({entry.recording.table for entry in entries}), [np.zeros((1, sum(dims)), np.float32)]
    for path in tables[:: max(1, len(tables) // _GUESS_FROM)][:_GUESS_FROM]:
        try:
            values = read_table(path, columns, dims, fps).values
        except DataError:
            continue
        read.append(np.nan_to_num(values, posinf=0.0, neginf=0.0))
    low, high = usual_range(np.concatenate(read))
    return low.tolist(), high.tolist()


def _stored_size(source: LerobotSource) -> tuple[int, int] | None:
    """Height and width of the frames of the first episode that can be opened."""
    for episode in source.episodes[:_GUESS_FROM]:
        try:
            return source.first_size(episode.index)
        except DataError:
            continue
    return None


def stated_size(path: Path, feature: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a feature whose channels come first or last."""
    shape = validated(path, _Shaped, feature, "the camera").shape or ()
    if len(shape) < 2:
        raise DataError(path, expected="height and width of the camera", found=f"{shape}", fix="Correct its shape.")
    channels_first = len(shape) == 3 and shape[0] in (1, 3)
    return (shape[-2], shape[-1]) if channels_first else (shape[0], shape[1])
