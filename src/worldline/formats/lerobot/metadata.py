"""meta/ of a LeRobot data set, v2.x or v3.0: its cameras, its states, its episodes, and the places of their files."""

import json
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import escape
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from worldline.files import read_json, reading
from worldline.formats.lerobot.tables import read_columns
from worldline.formats.source import LeavingOut, validated
from worldline.progress import say_once
from worldline.schema import DataError, Episode, UsageError

INFO = "meta/info.json"
MARK = "meta/worldline.json"
"""What worldline's own writer adds."""
PREFIX = "worldline"  # of the columns and of the entries of an episode that it adds
NO_FILE = "no file"
_VERSIONS = ("v2.0", "v2.1", "v3.0")
NO_NUMBERS = ("video", "image", "string")
_NEVER_STATES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_LONGEST_NAME = 255  # bytes of a file's name that file systems allow
_WIDEST = 100_000
_SAID = (
    "tasks",
    *(
        f"{PREFIX}/{name}"
        for name in ("source", "episode", "recording", "start", "forecaster", "run", "seed", "sample")
    ),
)
_Index = Annotated[int, Field(ge=0, le=10**9)]


@dataclass(frozen=True, kw_only=True)
class Recording(Episode):
    """An episode, and where it lies, as the metadata say: rows of a table below `root`, and frames of a video."""

    number: int = 0
    """`episode_index` in the table."""
    root: Path
    table: Path
    video: Path | None
    """None where the camera's images lie in the table."""
    begins: float | None = None
    """Seconds into the video, where one file holds several episodes (v3.0)."""
    first_frame: int = 0
    """The episode's first frame in its file, if the episodes there follow one another without gap or surplus."""
    frames_in_file: int
    """Frames of all episodes that lie in the video."""


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


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The used part of meta/info.json below the folder `root`; types and ranges are checked."""

    root: Path
    codebase_version: str
    fps: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)]
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: str | None = None
    chunks_size: Annotated[int, Field(gt=0)] = 1000

    @classmethod
    def read(cls, root: Path) -> "Meta":
        """Read it. Raises `DataError` where it is absent, damaged, or of a version that is not read."""
        content = read_json(root / INFO)
        version = content.get("codebase_version")
        if version not in _VERSIONS:
            fix = "Convert the data set with the scripts of the lerobot package (convert_dataset_v1_to_v2 and on)."
            expected = f"codebase_version {' or '.join(_VERSIONS)}"
            raise DataError(root / INFO, expected=expected, found=repr(version), fix=fix, kind="format")
        return validated(root / INFO, cls, content | {"root": root})

    def fault(self, expected: str, found: str, kind: str = "metadata", fix: str = "Correct the metadata.") -> DataError:
        """Something that is wrong with the file."""
        return DataError(self.root / INFO, expected=expected, found=found, fix=fix, kind=kind)

    def cameras(self) -> dict[str, str]:
        """Keys of the cameras, each with why it is not used by default (a depth map, `NO_FILE`), or nothing."""
        found: dict[str, str] = {}
        for key, feature in self.features.items():
            if feature.get("dtype") not in ("video", "image"):
                continue
            shape, info = feature.get("shape"), feature.get("info")
            facts = feature | (info if isinstance(info, dict) else {})
            if True in (facts.get("is_depth_map"), facts.get("video.is_depth_map")):
                found[key] = "a depth map"
            elif isinstance(shape, list) and len(shape) == 3 and 1 in (shape[0], shape[-1]):
                found[key] = "one channel, as a depth map"
            else:
                found[key] = NO_FILE if self.is_video(key) and not any(self._videos(key)) else ""
        return found

    def _videos(self, camera: str) -> Iterator[Path]:
        """The videos of a camera that exist, wherever the template puts them."""
        if self.video_path is not None:
            pattern = re.sub(r"\{(?!video_key\})[^{}]*\}", "*", self.video_path)
            place = self._place(pattern, video_key=escape(camera))
            yield from self.root.glob(str(place.relative_to(self.root)))

    def camera(self, wanted: str | None) -> str:
        """The camera of a key, or of its last part; the only one to use where none is wanted, and then the others are
        named. Raises `UsageError` in doubt."""
        available = self.cameras()
        if not available:
            raise self.fault("a camera (video or image)", "none", fix="Record one, or use another data set.")
        if wanted is None:
            matches = [key for key, why_not in available.items() if not why_not] or list(available)
        else:
            matches = [wanted] if wanted in available else [key for key in available if key.endswith(f".{wanted}")]
        if len(matches) == 1:
            if wanted is None and len(available) > 1:
                others = ", ".join(f"{key} ({why_not})" for key, why_not in available.items() if key != matches[0])
                say_once(
                    f"{self.root}: reading {matches[0]}, not {others}; --camera, in recipes --data.camera, chooses"
                )
            return matches[0]
        problem = "several cameras, choose one" if wanted is None else f"no single camera is called {wanted!r}"
        described: list[str] = []
        for key, why_not in available.items():
            kind = why_not if why_not and why_not != NO_FILE else "colour"
            files = f"{sum(1 for _ in self._videos(key))} videos" if self.is_video(key) else "images in the tables"
            described.append(f"{key} ({'x'.join(map(str, self.size(key)))}, {kind}, {files})")
        raise UsageError(f"{self.root}: {problem} (--camera, in recipes --data.camera): {'; '.join(described)}")

    def is_video(self, camera: str) -> bool:
        """Whether a camera is stored as video, and not as images in the tables."""
        return self.features[camera]["dtype"] == "video"

    def size(self, camera: str) -> tuple[int, int]:
        """Height and width that a camera is said to have; channels come first or last."""
        shape = self._shape(camera)
        if len(shape) < 2:
            raise self.fault(f"height and width of {camera}", f"{shape}")
        channels_first = len(shape) == 3 and shape[0] in (1, 3)
        return (shape[-2], shape[-1]) if channels_first else (shape[0], shape[1])

    def dim(self, column: str) -> int:
        """Numbers in a row of a column. Raises `UsageError` for a column that is not there or holds no numbers."""
        numeric = [key for key, feature in self.features.items() if feature.get("dtype") not in NO_NUMBERS]
        if column not in numeric:
            choices = ", ".join(key for key in numeric if key not in _NEVER_STATES) or "it has none"
            problem = f"no numbers in {column!r}" if column in self.features else f"no {column!r}"
            raise UsageError(
                f"{self.root / INFO}: the data set has {problem}; choose states by name, one or several (--state-keys, "
                f"in recipes --data.state-keys): {choices}"
            )
        dim = prod(self._shape(column))
        if dim > _WIDEST:
            raise self.fault("a state", f"{column} of {dim} values")
        return dim

    def _shape(self, key: str) -> tuple[int, ...]:
        shape = self.features[key].get("shape") or []
        if not isinstance(shape, list) or not all(type(size) is int and 0 < size <= _WIDEST for size in shape):
            raise self.fault(f"features.{key}.shape of whole numbers in 1..{_WIDEST}", repr(shape)[:80])
        return tuple(shape)

    def recordings(self, camera: str, leaving: LeavingOut) -> list[Recording]:
        """The listed episodes, by number; one listed twice as listed last. Those without frames are left out."""
        listed = list(self._listed(camera, leaving))
        last = {of.number: of for of in listed}
        fix = "Take the surplus line out of the list of episodes in meta/; it is left out here."
        for number, times in Counter(of.number for of in listed).items():
            twice = f"episode {number} (listed {times} times, used once)", "every episode once", "duplicate"
            empty = f"episode {number} (of no frame)", "episodes with frames", "empty_episode"
            for what, expected, kind in [twice] * (times > 1) + [empty] * (last[number].length == 0):
                problem = DataError(self.root / "meta", expected=expected, found=what, fix=fix, kind=kind)
                leaving.leave(what, problem, harmless=True)
        kept = [of for of in last.values() if of.length > 0]
        if not kept or kept[0].begins is None:
            return kept
        # Episodes share videos (v3.0): count the frames before each in its video, and of all episodes there.
        done: Counter[Path | None] = Counter()
        numbered: list[Recording] = []
        for of in sorted(kept, key=lambda of: (of.begins or 0.0, of.number)):
            numbered.append(replace(of, first_frame=done[of.video]))
            done[of.video] += of.length
        return [replace(of, frames_in_file=done[of.video]) for of in sorted(numbered, key=lambda of: of.number)]

    def _listed(self, camera: str, leaving: LeavingOut) -> Iterator[Recording]:
        """Every episode that is listed, in that order, as if its video were its own."""
        shown, v3, path = self.is_video(camera), self.codebase_version == "v3.0", self.root / "meta/episodes.jsonl"
        if v3:
            rows = _rows(self.root, camera if shown else None, leaving)
        else:
            with reading(path, expected="the list of episodes"):
                # By line feeds alone: a task may hold other characters that Python takes for the end of a line.
                lines = enumerate(path.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), start=1)
            rows = ((path, f"line {number}", line) for number, line in lines if line.strip())
        for path, where, content in rows:
            with leaving.around(f"{where} of {path.name}"):
                row = validated(path, _Listed, content, where)
                said = _said_of(json.loads(content) if isinstance(content, bytes) else content)
                chunk = row.episode_index // self.chunks_size
                own = {"episode_index": row.episode_index, "episode_chunk": chunk, "video_key": camera}
                yield Recording(
                    index=0,
                    number=row.episode_index,
                    length=row.length,
                    name=f"episode {row.episode_index}",
                    root=self.root,
                    table=self._place(self.data_path, row.data_chunk, row.data_file, **own),
                    video=self._place(self.video_path, row.video_chunk, row.video_file, **own) if shown else None,
                    begins=row.begins if v3 and shown else None,
                    frames_in_file=row.length,
                    **said,
                )

    def _place(self, template: str | None, chunk: int = 0, file: int = 0, **fields: object) -> Path:
        """Fill a path template. Raises `DataError` unless it gives a path below the data set's folder."""
        if template is None:
            raise self.fault("video_path", "none, though a camera is said to be video")
        try:
            place = template.format(chunk_index=chunk, file_index=file, **fields)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            found = f"{template!r} ({type(error).__name__}: {error})"
            raise self.fault("a path with fields such as {episode_index:06d}", found) from error
        parts = Path(place).parts
        too_long = any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in parts)
        if not parts or "\0" in place or {"/", ".."} & set(parts) or too_long:
            raise self.fault("a path below the data set's folder", f"{place[:80]!r}")
        return self.root / place


def lists_of(root: Path) -> list[Path]:
    """The files that list the episodes (v3.0); not what macOS and notebooks hide beside them under the same names."""
    folder = root / "meta/episodes"
    parts = ((path, path.relative_to(folder).parts) for path in folder.glob("*/*.parquet"))
    return sorted(path for path, names in parts if not any(name.startswith(".") for name in names))


def _rows(root: Path, camera: str | None, leaving: LeavingOut) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Rows of meta/episodes/*/*.parquet (v3.0): file, place in it, content."""
    files = lists_of(root)
    if not files:
        raise DataError(root / "meta/episodes", expected="parquet files that list the episodes", found="none")
    columns = {"episode_index": "episode_index", "length": "length"}
    columns |= {"data_chunk": "data/chunk_index", "data_file": "data/file_index"}
    if camera is not None:
        names = {"video_chunk": "chunk_index", "video_file": "file_index", "begins": "from_timestamp"}
        columns |= {name: f"videos/{camera}/{column}" for name, column in names.items()}
    for path in files:
        with leaving.around(f"what {path.name} lists"):
            for i, row in enumerate(read_columns(path, tuple(columns.values()), _SAID).to_pylist()):
                said = {name: row[name] for name in _SAID if name in row}
                yield path, f"row {i}", {name: row[column] for name, column in columns.items()} | said


def _said_of(row: dict[str, Any]) -> dict[str, Any]:
    """What is said of an episode beside its place: its task, and where an export of worldline has it from.

    Part of a recording, or one imagined from it, counts as that recording: who is validated on it may not be trained
    on this. A whole one is known by its own states.
    """
    tasks, marked = row.get("tasks"), f"{PREFIX}/"
    listed = tasks if isinstance(tasks, list) else [tasks]  # some write the one there is as it is
    task = next((one for one in listed if isinstance(one, str)), "")
    task = task.encode(errors="replace").decode()  # half a character, which JSON can escape, cannot be written
    of = {name.removeprefix(marked): row[name] for name in _SAID[1:] if name in row}
    part = of.get("forecaster") or of.get("start")
    return {"task": task, "provenance": of, "recording": str(of["recording"]) if part and "recording" in of else None}


def flat_names(names: Any) -> list[str]:
    """The names of dimensions, in whatever nesting info.json has them."""
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict):
        positions = bool(names) and all(type(value) is int for value in names.values())
        names = sorted(names, key=names.__getitem__) if positions else list(names.values())
    return [name for item in names for name in flat_names(item)] if isinstance(names, list) else []
