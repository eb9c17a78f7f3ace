"""Open a LeRobot data set, v2.x or v3.0: find the place of every episode.

Reads `meta/`, a few tables to guess what the states are, and the header of one video.
"""

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from worldline.contract import Reading
from worldline.files import reading
from worldline.formats.checks import LeavingOut, leave_out_absent, validated
from worldline.formats.lerobot.metadata import Meta
from worldline.formats.lerobot.source import LerobotSource, Recording
from worldline.formats.lerobot.tables import read_columns, read_table
from worldline.formats.plausible import usual_range
from worldline.formats.source import Source
from worldline.formats.states import guess_layout
from worldline.schema import DataError, Episode, StateLayout, UsageError

_GUESS_FROM = 8  # tables that are read to guess the layout
_Index = Annotated[int, Field(ge=0, le=10**9)]


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """How an episode is listed: a line of meta/episodes.jsonl (v2.x), or a row of meta/episodes/*.parquet (v3.0)."""

    episode_index: _Index
    length: Annotated[int, Field(ge=0, le=10**7)]
    data_chunk: _Index = 0
    data_file: _Index = 0
    video_chunk: _Index = 0
    video_file: _Index = 0
    begins: Annotated[float, Field(ge=0, le=10**7, allow_inf_nan=False)] = 0.0


def open_lerobot(root: Path, *, camera: str | None, columns: tuple[str, ...], leaving: LeavingOut) -> Source:
    """Open a LeRobot data set; `columns` of its tables, side by side, are the states."""
    meta = Meta.read(root)
    camera = meta.camera(camera)
    listed = _numbered(_once_and_not_empty(root, list(_listed(meta, camera, leaving)), leaving))
    needed = {f"episode {of.number}": [path for path in (of.table, of.video) if path is not None] for of in listed}
    if len(set(columns)) != len(columns):
        raise UsageError(f"state keys {', '.join(columns)}: each can be given once")
    dims = tuple(meta.dim(column) for column in columns)
    places = tuple(listed[i] for i in leave_out_absent(root, needed, leaving))
    source = LerobotSource(
        kind=f"lerobot-{meta.codebase_version}",
        path=root,
        fps=meta.fps,
        layout=_layout(meta, columns, dims, places),
        episodes=tuple(
            Episode(index=i, length=place.length, name=f"episode {place.number}", number=place.number)
            for i, place in enumerate(places)
        ),
        image_size=meta.size(camera),
        places=places,
        meta=meta,
        camera=camera,
        columns=columns,
        reading=Reading(camera=camera, state_keys=columns),
        dims=dims,
    )
    return source.sound(leaving)


def _listed(meta: Meta, camera: str, leaving: LeavingOut) -> Iterator[Recording]:
    """Every episode that the metadata list, in their order."""
    v3, has_video = meta.codebase_version == "v3.0", meta.is_video(camera)
    for path, where, content in _rows(meta.root, camera if has_video else None, leaving) if v3 else _lines(meta.root):
        with leaving.around(f"{where} of {path.name}"):
            row = validated(path, _Listed, content, where)
            chunk = row.episode_index // meta.chunks_size
            own = {"episode_index": row.episode_index, "episode_chunk": chunk, "video_key": camera}
            yield Recording(
                number=row.episode_index,
                length=row.length,
                root=meta.root,
                table=meta.place(meta.data_path, row.data_chunk, row.data_file, **own),
                video=meta.place(meta.video_path, row.video_chunk, row.video_file, **own) if has_video else None,
                begins=row.begins if v3 and has_video else None,
            )


def _lines(root: Path) -> Iterator[tuple[Path, str, bytes]]:
    """Lines of meta/episodes.jsonl (v2.x): file, place in it, content."""
    path = root / "meta/episodes.jsonl"
    with reading(path, expected="the list of episodes"):
        # By line feeds alone: a task may hold other characters that Python takes for the end of a line.
        lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    yield from ((path, f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def _rows(root: Path, camera: str | None, leaving: LeavingOut) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Rows of meta/episodes/*/*.parquet (v3.0): file, place in it, content."""
    folder = root / "meta/episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise DataError(folder, expected="parquet files that list the episodes", found="none")
    columns = {"episode_index": "episode_index", "length": "length"}
    columns |= {"data_chunk": "data/chunk_index", "data_file": "data/file_index"}
    if camera is not None:
        names = {"video_chunk": "chunk_index", "video_file": "file_index", "begins": "from_timestamp"}
        columns |= {name: f"videos/{camera}/{column}" for name, column in names.items()}
    for path in files:
        with leaving.around(f"what {path.name} lists"):
            for i, row in enumerate(read_columns(path, tuple(columns.values())).to_pylist()):
                yield path, f"row {i}", {name: row[column] for name, column in columns.items()}


def _once_and_not_empty(root: Path, listed: list[Recording], leaving: LeavingOut) -> list[Recording]:
    """Use an episode that is listed twice only once, as listed last; leave out episodes without frames."""
    last = {recording.number: recording for recording in listed}
    times = Counter(recording.number for recording in listed)
    fix = "Take the surplus line out of the list of episodes in meta/; it is left out here."
    twice = [f"{i} (listed {count} times, used once)" for i, count in times.items() if count > 1]
    empty = [f"{i} (of no frame)" for i in last if last[i].length == 0]
    surplus = [(what, "every episode once", "duplicate") for what in twice]
    surplus += [(what, "episodes with frames", "empty_episode") for what in empty]
    for what, expected, kind in surplus:
        problem = DataError(root / "meta", expected=expected, found=f"episode {what}", fix=fix, kind=kind)
        leaving.leave(f"episode {what}", problem, harmless=True)
    return [recording for recording in last.values() if recording.length > 0]


def _numbered(recordings: list[Recording]) -> list[Recording]:
    """Where videos are shared (v3.0), count the frames before each episode in its video, and of all episodes there."""
    if not recordings or recordings[0].begins is None:
        return recordings
    done: Counter[Path | None] = Counter()
    numbered: list[Recording] = []
    for recording in sorted(recordings, key=lambda of: (of.begins or 0.0, of.number)):
        numbered.append(replace(recording, first_frame=done[recording.video]))
        done[recording.video] += recording.length
    return [replace(of, frames_in_file=done[of.video]) for of in sorted(numbered, key=lambda of: of.number)]


def _layout(meta: Meta, columns: tuple[str, ...], dims: tuple[int, ...], places: Sequence[Recording]) -> StateLayout:
    """Names (`state.0` and so on where the metadata do not give as many), and kinds by the values in a few tables."""
    names: list[str] = []
    last = [column.rsplit(".", 1)[-1] for column in columns]
    for column, dim, end in zip(columns, dims, last, strict=True):
        prefix = f"{end if last.count(end) == 1 else column}."
        found = [prefix * (len(columns) > 1) + name for name in meta.names(column)]
        names += found if len(found) == dim == len(set(found)) else [f"{prefix}{i}" for i in range(dim)]
    # meta/stats.json is not used, because it often belongs to other data.
    tables, read = sorted({place.table for place in places}), [np.zeros((1, sum(dims)), np.float32)]
    for path in tables[:: max(1, len(tables) // _GUESS_FROM)][:_GUESS_FROM]:
        with suppress(DataError):  # what is wrong with it is said when it is read
            values = read_table(path, columns, dims, meta.fps).values
            read.append(np.nan_to_num(values, posinf=0.0, neginf=0.0))
    low, high = usual_range(np.concatenate(read))
    return guess_layout(names, low.tolist(), high.tolist())
