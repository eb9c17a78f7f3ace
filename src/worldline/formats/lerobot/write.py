"""LeRobot data sets, v2.1 and v3.0, written and added to: the same episodes in either layout, and their provenance.

    meta/info.json               features, totals and the templates of all paths; moved into place last
    meta/worldline.json          that this writer made the data set, and with which settings: no other is added to
    meta/tasks, meta/episodes    .jsonl (v2.1, with episodes_stats.jsonl) or .parquet (v3.0, with stats.json)
    data/, videos/               one file per episode (v2.1), or several episodes per file (v3.0); never changed again

The published rules are those of huggingface/lerobot: its page on the v3.0 layout (docs/source/lerobot-dataset-v3.mdx),
and for v2.1 what its release 0.3.3 loads. All that is new is written below `.worldline/`, which no reader looks into;
then a list of moves is written, and carried out. A call that is killed before leaves the data set as it was; one that
is killed among the moves is finished by the next call. The same call again goes on with the first unfinished file.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64, UInt8
from pyarrow import parquet

from worldline.files import atomic, hash_of, read_json, reading, remove_temporaries, write_json
from worldline.formats.lerobot.metadata import INFO, MARK, PREFIX, lists_of
from worldline.formats.lerobot.stats import Histogram, aggregated, of_images, of_rows
from worldline.formats.lerobot.tables import read_columns
from worldline.formats.source import Source, validated
from worldline.formats.video import encode, frame_times, stream_frames
from worldline.owner import LOCK, OWNER
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.schema import DataError, StateKind, UsageError

Version = Literal["v2.1", "v3.0"]
Actions = Literal["recorded", "next_state"]
REAL, SOURCE_FRAME, UNCERTAINTY = (f"{PREFIX}.{name}" for name in ("real", "source_frame", "uncertainty"))
MEAN = -1
NO_TASK = "unknown"
"""LeRobot asks for a task in words."""
CRF = 18
"""Quality of the video: x264's constant rate factor."""
_STAGED, _PLAN, _MOVES = ".worldline", "plan.json", "moves.json"
_CHUNK = 1000  # files, or episodes in v2.1, per folder
_MOST_FRAMES, _MOST_PIXELS = 8192, 10**9  # of one file, v3.0: with them it stays below the 200 MB of LeRobot's own
_COMPARED = 64  # frames of each video that are decoded again, for its PSNR
_DATA = {
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_VIDEO = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
_ORDER = ("videos/", "data/", "meta/tasks", "meta/stats", "meta/episodes_stats", "meta/episodes", MARK, INFO)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What all episodes of a data set share. Raises `UsageError` for frames that H.264 cannot hold as they are."""

    version: Version
    fps: float
    size: tuple[int, int]
    """Height and width of frames in pixels; both even."""
    state_names: tuple[str, ...]
    state_kinds: tuple[StateKind, ...]
    action_names: tuple[str, ...]
    actions: Actions
    """What `action` holds: the source's own actions, or the state of the next frame (of the last: its own)."""
    camera: str = "observation.images.camera"

    def __post_init__(self) -> None:
        if self.size[0] % 2 or self.size[1] % 2:
            height, width = self.size
            problem = f"LeRobot's videos need an even size, these frames are {height}x{width}"
            raise UsageError(f"{problem}; scale them (--size {max(2, min(self.size) // 2 * 2)})")

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Those of info.json: each column with dtype, shape and names."""
        (height, width), one = self.size, {"shape": [1], "names": None}
        video = {f"video.{name}": value for name, value in {"height": height, "width": width, "channels": 3}.items()}
        video |= {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
        video |= {"video.fps": _number(self.fps), "has_audio": False}
        shown = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": video}
        states = {"observation.state": self.state_names, "action": self.action_names}
        whole = ("frame_index", "episode_index", "index", "task_index")
        return {
            **{k: {"dtype": "float32", "shape": [len(names)], "names": [*names]} for k, names in states.items()},
            self.camera: shown,
            REAL: {"dtype": "bool", **one},
            SOURCE_FRAME: {"dtype": "int64", **one},
            UNCERTAINTY: {"dtype": "float32", **one},
            "timestamp": {"dtype": "float32", **one},
            **{name: {"dtype": "int64", **one} for name in whole},
        }

    def place(self, templates: dict[str, str], *, episode: int, file: int) -> str:
        """Path of a file below the data set's folder."""
        where = {"episode_chunk": episode // _CHUNK, "episode_index": episode, "video_key": self.camera}
        return templates[self.version].format(chunk_index=file // _CHUNK, file_index=file % _CHUNK, **where)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an episode comes from: kept with it in meta/episodes, as `worldline/source` and so on."""

    source: str
    """Name of the data set's folder."""
    episode: str
    """Name of the episode there."""
    recording: str
    """Which recording it is: a hash of its states (`splits.recording_of`)."""
    start: int = 0
    """Video frame of the recording at which it begins."""
    forecaster: str = ""
    """Fingerprint of what imagined its frames: models, sampling and code. Empty where all frames are real."""
    run: str = ""
    seed: int = 0
    sample: int = 0
    """Which of several futures; -1 for the mean of all, pixel by pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """One episode to be written."""

    frames: Callable[[], Iterable[UInt8[np.ndarray, "n h w 3"]]]
    """Gives its frames, in pieces."""
    states: Float32[np.ndarray, "f s"]
    actions: Float32[np.ndarray, "f a"]
    real: Bool[np.ndarray, "f"]
    """Whether a camera took the frame, or a world imagined it."""
    source_frames: Int64[np.ndarray, "f"]
    """Position of each frame in its recording, in video frames."""
    uncertainty: Callable[[], Float32[np.ndarray, "f"]]
    """Gives the mean spread of the samples over the pixels, in grey levels: 0 of real frames, -1 where it is not known.
    Asked for after `frames`."""
    task: str
    provenance: Provenance

    @cached_property
    def id(self) -> str:
        return hash_of([asdict(self.provenance) | {"source": "", "run": ""}, len(self.states)])[:16]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of a call."""

    episodes: int
    """Those asked for."""
    reused: int
    """Of them, those that were there already."""
    frames: int
    psnr: float
    """Of the worst of the videos written by this call, against what was encoded, in dB; 100 where nothing was lost."""


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """meta/worldline.json."""

    export: Export
    episodes: int = 0
    frames: int = 0
    files: int = 0
    """Of tables, and as many of videos."""
    lists: int = 0
    """Of parquet files in meta/episodes (v3.0)."""
    tasks: tuple[str, ...] = ()
    crf: int = CRF
    format: Literal[1] = 1


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What one call adds to what is there."""

    root: Path
    there: _Mark
    new: tuple[Recorded, ...]
    groups: tuple[range, ...]
    """Of `new`: those that share a file."""
    tasks: tuple[str, ...]
    """All of the data set, by `task_index`."""
    firsts: tuple[int, ...] = field(init=False)
    """Row of the data set at which each episode of `new` begins."""

    def __post_init__(self) -> None:
        ends = self.there.frames + np.cumsum([0, *(len(one.states) for one in self.new)])
        object.__setattr__(self, "firsts", tuple(ends.tolist()))

    @property
    def export(self) -> Export:
        return self.there.export

    @property
    def staged(self) -> Path:
        return self.root / _STAGED

    def place(self, templates: dict[str, str], group: int) -> str:
        number = self.there.episodes + self.groups[group].start
        return self.export.place(templates, episode=number, file=self.there.files + group)

    def facts(self, group: int) -> Path:
        """What is known of a group when its files are written; the last of them."""
        return self.staged / f"group_{group:06d}.json"


def add_episodes(
    root: Path, export: Export, episodes: Sequence[Recorded], *, append: bool = False, ranks: Ranks | None = None
) -> Written:
    """Write episodes as a data set, or add those to it that are not there yet. Several ranks share the files.

    Args:
        append: whether `root` may be a data set of this writer with other episodes.

    Raises:
        UsageError: `root` holds something else, or a data set of other features, rate or version, or is in use.
        DataError: what is there is damaged. Nothing that is there is changed.
        DiskFullError: there was no room; the same call again goes on.
    """
    ranks = ranks or Ranks()
    with ranks.owning(root):
        with ranks.first():
            if ranks.writes:
                _finish_moves(root)
                _check_place(root)
            there = _there(root, export)
            known = _ids(root, there) if there.episodes else set()
            new = tuple(one for one in episodes if one.id not in known)
            _check(root, there, episodes, new, append)
            tasks = tuple(dict.fromkeys([*there.tasks, *(one.task for one in new)]))
            groups = tuple(_groups(export, [len(one.states) for one in new]))
            job = _Job(root=root, there=there, new=new, groups=groups, tasks=tasks)
            if ranks.writes and new:
                _begin(job)
        done = ranks.made(
            range(len(groups)), partial(_write, job), done=lambda group: job.facts(group).exists(), what="exporting"
        )
        del done  # files, not episodes
        facts = [read_json(job.facts(group)) for group in range(len(groups))]
        ranks.everyones(None)  # all have read them
        if ranks.writes and new:
            _commit(job, facts)
    lengths = sum(len(one.states) for one in new)
    worst = min((fact["psnr"] for fact in facts), default=100.0)
    return Written(episodes=len(episodes), reused=len(episodes) - len(new), frames=lengths, psnr=worst)


def camera_of(source: Source) -> str:
    """The key of a camera: by the name of the source's own, if that is known."""
    named = (source.reading.camera or "camera").replace("/", "_")
    return named if named.startswith("observation.") else f"observation.images.{named}"


def next_states(states: Float32[np.ndarray, "f s"]) -> Float32[np.ndarray, "f s"]:
    """For each frame the state of the next; for the last its own."""
    return np.concatenate([states[1:], states[-1:]])


# --- what is there ---


def _check_place(root: Path) -> None:
    """Refuse a folder that holds anything but a data set of this writer. Raises `UsageError`."""
    others = [path.name for path in root.iterdir() if path.name not in (LOCK, OWNER, _STAGED)]
    if not others or (root / MARK).exists():
        return
    what = "a LeRobot data set that worldline did not write, which it never changes" if (root / INFO).exists() else ""
    raise UsageError(f"{root} holds {what or f'something else ({others[0]})'}; choose another folder")


def _there(root: Path, export: Export) -> _Mark:
    """The data set that is there, empty if none. Raises `UsageError` where it is of other features."""
    if not (root / MARK).exists():
        return _Mark(export=export)
    mark = validated(root / MARK, _Mark, read_json(root / MARK))
    info = read_json(root / INFO)
    found = {name: info.get(name) for name in ("codebase_version", "total_episodes", "total_frames", "features")}
    stated: dict[str, Any] = {"codebase_version": mark.export.version, "total_episodes": mark.episodes}
    stated |= {"total_frames": mark.frames, "features": mark.export.features}
    for name, value in stated.items():
        if found[name] != value:
            fix = "Another program has changed the data set since; export into a new folder."
            expected, seen = f"{name} {str(value)[:80]}, as {MARK} says", str(found[name])[:80]
            raise DataError(root / INFO, expected=expected, found=seen, fix=fix, kind="metadata")
    for name, value in asdict(export).items():
        if (other := getattr(mark.export, name)) != value:
            fix = "Choose another folder, or bring both to one (--size, --state-keys, --state-kinds, --actions, --to)"
            raise UsageError(f"{root} cannot be added to: its {name} is {other}, here it is {value}. {fix}")
    return mark


def _ids(root: Path, there: _Mark) -> set[str]:
    """The ids of all episodes that are listed. Raises `DataError` where the list is damaged."""
    key = f"{PREFIX}/id"
    if there.export.version == "v2.1":
        path = root / "meta/episodes.jsonl"
        with reading(path, KeyError, TypeError, expected="the list of episodes"):
            found = [json.loads(line)[key] for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    else:
        path = root / "meta/episodes"
        found = [one for file in lists_of(root) for one in read_columns(file, [key])[key].to_pylist()]
    if len(found) != there.episodes:
        raise DataError(path, expected=f"{there.episodes} episodes, as {MARK} says", found=f"{len(found)}")
    return set(found)


def _check(root: Path, there: _Mark, episodes: Sequence[Recorded], new: Sequence[Recorded], append: bool) -> None:
    """Raises `UsageError` where the call would mix what is not to be mixed, or an episode is given twice."""
    if len({one.id for one in episodes}) != len(episodes):
        raise UsageError(f"{root}: an episode is given twice; leave one of them out (--exclude-episodes)")
    if there.episodes and not append and (new or len(episodes) != there.episodes):
        raise UsageError(f"{root} holds a data set of {there.episodes} other episodes; add to it with --append")


# --- writing ---


def _groups(export: Export, lengths: Sequence[int]) -> Iterator[range]:
    """Episodes, in order, that share a file."""
    limit = 0 if export.version == "v2.1" else min(_MOST_FRAMES, _MOST_PIXELS // (export.size[0] * export.size[1]))
    first, frames = 0, 0
    for i, length in enumerate(lengths):
        if i > first and frames + length > limit:
            yield range(first, i)
            first, frames = i, 0
        frames += length
    if first < len(lengths):
        yield range(first, len(lengths))


def _begin(job: _Job) -> None:
    """Note what is being written; what another call left unfinished goes."""
    plan = {"export": asdict(job.export), "after": job.there.episodes, "episodes": [one.id for one in job.new]}
    plan = json.loads(json.dumps(plan))
    if job.staged.exists() and (not (job.staged / _PLAN).exists() or read_json(job.staged / _PLAN) != plan):
        say(f"{job.root}: what another call left unfinished is removed")
        shutil.rmtree(job.staged)
    job.staged.mkdir(exist_ok=True)
    remove_temporaries(job.staged)
    write_json(job.staged / _PLAN, plan)


def _write(job: _Job, group: int) -> None:
    """Write the table and the video of some episodes, and then what must be known of them."""
    members = [job.new[i] for i in job.groups[group]]
    table, video = (job.staged / "files" / job.place(templates, group) for templates in (_DATA, _VIDEO))
    for path in (table, video):
        path.parent.mkdir(parents=True, exist_ok=True)
    shown = _Shown(members, job.export.size)
    encode(video, shown, fps=job.export.fps, crf=CRF)
    stats: list[dict[str, Any]] = []
    with atomic(table) as temporary, temporary.open("wb") as file:
        writer = None
        for i, one in zip(job.groups[group], members, strict=True):
            columns = _columns(job, i, one)
            rows = pa.table({name: _arrow(values) for name, values in columns.items()})
            writer = writer or parquet.ParquetWriter(file, rows.schema)
            writer.write_table(rows)  # a row group for each episode
            stats.append({name: of_rows(values) for name, values in columns.items()})
        if writer is not None:
            writer.close()
    for found, histogram in zip(stats, shown.histograms, strict=True):
        found[job.export.camera] = of_images(histogram)
    write_json(job.facts(group), {"psnr": shown.psnr_of(video), "stats": stats})


def _columns(job: _Job, i: int, one: Recorded) -> dict[str, np.ndarray]:
    """The table of an episode, in the order of info.json; rows first."""
    count, first = len(one.states), job.firsts[i]
    values = {
        "observation.state": one.states,
        "action": one.actions,
        REAL: one.real,
        SOURCE_FRAME: one.source_frames,
        UNCERTAINTY: one.uncertainty(),
        "timestamp": (np.arange(count) / job.export.fps).astype(np.float32),
        "frame_index": np.arange(count),
        "episode_index": np.full(count, job.there.episodes + i),
        "index": np.arange(first, first + count),
        "task_index": np.full(count, job.tasks.index(one.task)),
    }
    shapes = {name: feature["shape"] for name, feature in job.export.features.items() if name != job.export.camera}
    for name, shape in shapes.items():
        if values[name].reshape(len(values[name]), -1).shape != (count, *shape):
            raise ValueError(f"{name} of an episode is {values[name].shape}, not {(count, *shape)}")
    return {name: values[name] for name in shapes}


def _arrow(values: np.ndarray) -> pa.Array:
    """A column: lists of a fixed length, or numbers where it is 1 (as LeRobot takes a shape of [1])."""
    flat = pa.array(np.ascontiguousarray(values).ravel())
    width = values.size // max(1, len(values))
    return flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)


class _Shown:
    """The frames of some episodes, one by one; remembers their histograms, and a few to compare with the video."""

    def __init__(self, members: Sequence[Recorded], size: tuple[int, int]) -> None:
        self.members, self.size, self.histograms = members, size, [Histogram() for _ in members]
        self.count = sum(len(one.states) for one in members)
        self.compared: dict[int, np.ndarray] = dict.fromkeys(
            np.unique(np.linspace(0, self.count - 1, min(_COMPARED, self.count)).astype(int)).tolist(), np.zeros(0)
        )

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        number = 0
        for one, histogram in zip(self.members, self.histograms, strict=True):
            begun = number
            for piece in one.frames():
                if piece.shape[1:3] != self.size:
                    found = "{}x{}".format(*piece.shape[1:3])
                    raise UsageError(f"{one.provenance.episode}: frames of {found}, not {self.size}; give a --size")
                histogram.add(piece)
                for frame in piece:
                    if number in self.compared:
                        self.compared[number] = frame.copy()
                    yield frame
                    number += 1
            if number - begun != len(one.states):
                problem = f"{number - begun} frames for {len(one.states)} rows of states"
                raise ValueError(f"{one.provenance.episode}: {problem}")

    def psnr_of(self, video: Path) -> float:
        """PSNR of the compared frames of the video, in dB, from their mean squared error; at most 100.

        Raises `DataError` where the video does not hold the frames.
        """
        if (found := len(frame_times(video).ticks)) != self.count:
            raise DataError(video, expected=f"{self.count} frames, as were encoded", found=f"{found}", kind="frames")
        numbers, square, at = np.array(sorted(self.compared)), 0.0, 0
        for piece in stream_frames(video, numbers):
            for frame in piece.permute(0, 2, 3, 1).numpy():
                square += float(np.square(frame.astype(np.float64) - self.compared[numbers[at]]).mean()) / len(numbers)
                at += 1
        return min(100.0, float(10 * np.log10(255**2 / max(square, 1e-12))))


# --- making it part of the data set ---


def _commit(job: _Job, facts: list[dict[str, Any]]) -> None:
    """Write the metadata of old and new episodes together, then move everything into its place."""
    meta = job.staged / "files/meta"
    meta.mkdir(parents=True, exist_ok=True)
    rows = _listed(job, facts)
    stats = [one for fact in facts for one in fact["stats"]]
    (_list_v21 if job.export.version == "v2.1" else _list_v30)(job, rows, stats)
    mark = _Mark(
        export=job.export,
        episodes=job.there.episodes + len(job.new),
        frames=job.firsts[-1],
        files=job.there.files + len(job.groups),
        lists=job.there.lists + 1,
        tasks=job.tasks,
    )
    write_json(job.staged / "files" / MARK, asdict(mark))
    write_json(job.staged / "files" / INFO, _info(mark))
    made = [path for path in (job.staged / "files").rglob("*") if path.is_file()]
    files = [path.relative_to(job.staged / "files").as_posix() for path in made]
    rank = {path: next(i for i, start in enumerate(_ORDER) if path.startswith(start)) for path in sorted(files)}
    write_json(job.staged / _MOVES, {"moves": sorted(rank, key=rank.__getitem__)})
    _finish_moves(job.root)


def _finish_moves(root: Path) -> None:
    """Carry out a list of moves, if there is one; again where that was interrupted."""
    listed = root / _STAGED / _MOVES
    if not listed.exists():
        return
    for name in read_json(listed)["moves"]:
        staged, place = root / _STAGED / "files" / name, root / name
        if staged.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, place)
    listed.unlink()
    shutil.rmtree(root / _STAGED)


def _listed(job: _Job, facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What both versions list of each new episode."""
    psnr = [fact["psnr"] for group, fact in zip(job.groups, facts, strict=True) for _ in group]
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(job.new):
        own = {"id": one.id, **asdict(one.provenance), "psnr": psnr[i]}
        row = {"episode_index": job.there.episodes + i, "tasks": [one.task], "length": len(one.states)}
        rows.append(row | {f"{PREFIX}/{name}": value for name, value in own.items()})
    return rows


def _info(mark: _Mark) -> dict[str, Any]:
    export, count = mark.export, mark.episodes
    info: dict[str, Any] = {"codebase_version": export.version, "robot_type": None}
    info |= {"total_episodes": count, "total_frames": mark.frames, "total_tasks": len(mark.tasks)}
    if export.version == "v2.1":
        info |= {"total_videos": count, "total_chunks": -(-count // _CHUNK), "chunks_size": _CHUNK}
    else:
        info |= {"chunks_size": _CHUNK, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    info |= {"fps": _number(export.fps), "splits": {"train": f"0:{count}"}}
    return info | {
        "data_path": _DATA[export.version],
        "video_path": _VIDEO[export.version],
        "features": export.features,
    }


def _list_v21(job: _Job, rows: list[dict[str, Any]], stats: list[dict[str, Any]]) -> None:
    """meta/*.jsonl: the lines that are there, and new ones."""
    simple = ("min", "max", "mean", "std", "count")
    said = [
        {"episode_index": row["episode_index"], "stats": {k: {s: one[k][s] for s in simple} for k in one}}
        for row, one in zip(rows, stats, strict=True)
    ]
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(job.tasks)]
    for name, lines in {"episodes": rows, "episodes_stats": said, "tasks": tasks}.items():
        path, before = job.root / f"meta/{name}.jsonl", b""
        if job.there.episodes and name != "tasks":
            with reading(path, expected="a list"):
                before = path.read_bytes()
        with atomic(job.staged / f"files/meta/{name}.jsonl") as temporary:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            temporary.write_bytes(before + text.encode())


def _list_v30(job: _Job, rows: list[dict[str, Any]], stats: list[dict[str, Any]]) -> None:
    """meta/tasks.parquet, meta/stats.json, and one more file of meta/episodes."""
    files, camera = job.staged / "files/meta", job.export.camera
    chunk, number = divmod(job.there.lists, _CHUNK)
    for group, members in enumerate(job.groups):
        at_chunk, at_file = divmod(job.there.files + group, _CHUNK)
        for i in members:
            begins, ends = ((job.firsts[k] - job.firsts[members.start]) / job.export.fps for k in (i, i + 1))
            where = {"chunk_index": at_chunk, "file_index": at_file}
            rows[i] |= {f"data/{name}": value for name, value in where.items()}
            rows[i] |= {"dataset_from_index": job.firsts[i], "dataset_to_index": job.firsts[i + 1]}
            where |= {"from_timestamp": begins, "to_timestamp": ends}
            rows[i] |= {f"videos/{camera}/{name}": value for name, value in where.items()}
            rows[i] |= {f"stats/{k}/{s}": value for k, found in stats[i].items() for s, value in found.items()}
            rows[i] |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": number}
    path = files / f"episodes/chunk-{chunk:03d}/file-{number:03d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_parquet(path, pa.Table.from_pylist(rows))
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number_column = index | {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"}
    pandas = {"index_columns": ["task"], "column_indexes": [], "pandas_version": "2.0.0"}
    pandas |= {"columns": [number_column | {"numpy_type": "int64"}, index]}  # LeRobot reads the task as the index
    tasks = pa.table({"task_index": pa.array(range(len(job.tasks)), pa.int64()), "task": pa.array(job.tasks)})
    _write_parquet(files / "tasks.parquet", tasks.replace_schema_metadata({"pandas": json.dumps(pandas)}))
    before = [read_json(job.root / "meta/stats.json")] if job.there.episodes else []
    write_json(files / "stats.json", aggregated([*before, *stats]))


def _write_parquet(path: Path, table: pa.Table) -> None:
    with atomic(path) as temporary:
        parquet.write_table(table, temporary)


def _number(fps: float) -> float | int:
    """Whole numbers as LeRobot writes them."""
    return int(fps) if float(fps).is_integer() else fps
