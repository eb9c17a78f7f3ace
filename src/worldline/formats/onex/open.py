"""Find out the content of a 1X v2.0 folder and check that its files have the sizes given in its metadata.

Reads JSON, segment numbers and file sizes only. Faults go to a `Report`: opening raises the first, inspection
collects them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from worldline.contract import Reading
from worldline.files import mapped, read_json, unreadable
from worldline.formats.checks import LeavingOut, Report, adapter, leave_out_absent, validated
from worldline.formats.onex.source import OnexSource, Place, Shard, segment_runs
from worldline.formats.source import Source
from worldline.formats.states import ONEX_LAYOUT
from worldline.formats.video import probe
from worldline.schema import DataError, Episode, StateKind, StateLayout, TokenGrid, UsageError

COSMOS_GRID = TokenGrid(height=32, width=32, vocab_size=64_000)
"""The grid of the challenge's tokens (Cosmos DV8x8x8 at 256x256), where metadata.json does not say otherwise."""

_Count = Annotated[int, Field(gt=0, le=10**6)]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Meta:
    """The used part of metadata.json."""

    num_shards: Annotated[int, Field(ge=0, le=10**6)]
    hz: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)]
    state_names: tuple[str, ...] = ONEX_LAYOUT.names
    state_kinds: tuple[StateKind, ...] = ONEX_LAYOUT.kinds

    def __post_init__(self) -> None:
        names, kinds = self.state_names, self.state_kinds
        if len(names) != len(kinds) or len(set(names)) != len(names) or not names:
            raise UsageError(f"{len(set(names))} different state_names of {len(names)}, and {len(kinds)} state_kinds")


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """How metadata.json describes a token grid."""

    token_grid: tuple[_Count, _Count, _Count]
    vocab_size: Annotated[int, Field(gt=0, le=2**31)]
    block: _Count
    temporal_stride: _Count

    def __post_init__(self) -> None:
        if (latents := self.grid.latents_per_block) != self.token_grid[0]:
            raise UsageError(f"{latents} latent frames per block of {self.block}, but token_grid {self.token_grid}")

    @property
    def grid(self) -> TokenGrid:
        _, height, width = self.token_grid
        sizes = {"vocab_size": self.vocab_size, "block": self.block, "temporal_stride": self.temporal_stride}
        return TokenGrid(height=height, width=width, **sizes)


@dataclass(frozen=True, kw_only=True)
class _Marker:
    """metadata_{r}.json."""

    shard_num_frames: Annotated[int, Field(ge=0, le=10**9)]
    shard_ind: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """Where the files of shard r lie: nested (training) or flat (validation)."""

    root: Path
    nested: bool

    def file(self, kind: str, name: str) -> Path:
        return self.root / kind / name if self.nested else self.root / name

    @cached_property
    def suffix(self) -> str:
        """What the video files end in; where there are none, both possibilities, for messages to name."""
        found = {path.suffix for path in self.file("videos", "").glob("video_*.*")}
        return "mp4" if ".mp4" in found else "bin" if ".bin" in found else "mp4|bin"

    def shard(self, index: int) -> tuple[Path, Path, Path, Path]:
        return (
            self.file("metadata", f"metadata_{index}.json"),
            self.file("videos", f"video_{index}.{self.suffix}"),
            self.file("robot_states", f"states_{index}.bin"),
            self.file("segment_indices", f"segment_idx_{index}.bin"),
        )

    def markers(self) -> list[Path]:
        return list(self.file("metadata", "").glob("metadata_*.json"))

    def samples(self, suffix: str) -> list[int]:
        """Numbers of the samples of a test set that have a video or states."""
        if not (names := list(self.file("videos", "").glob(f"video_*.{suffix}"))):
            return []
        names += self.file("robot_states", "").glob("states_*.bin")
        return sorted({int(number) for path in names if (number := path.stem.rpartition("_")[2]).isdecimal()})

    def is_test(self) -> bool:
        """Samples without segment numbers: the test set.

        A training folder being written has its folders already, and a shard of video its own metadata.
        """
        if (self.root / ("segment_indices" if self.nested else "segment_idx_0.bin")).exists():
            return False
        return bool(self.samples("bin")) or (bool(self.samples("mp4")) and not self.markers())


def looks_like_onex(root: Path) -> bool:
    """Tell whether a folder has any of the files by which a 1X v2.0 folder is known."""
    return any((root / name).exists() for name in ("metadata.json", "robot_states", "states_0.bin", "metadata_0.json"))


def open_onex(root: Path, leaving: LeavingOut) -> Source:
    """Open a 1X v2.0 folder. Raises `DataError` for an unfinished, incomplete or inconsistent one."""
    folder = _Folder(root=root, nested=(root / "videos").is_dir() or (root / "robot_states").is_dir())
    test = folder.is_test()
    metadata = _metadata(folder, test, leaving.report)
    meta = validated(root / "metadata.json", _Meta, metadata)
    layout = StateLayout(names=meta.state_names, kinds=meta.state_kinds)
    grid = None if folder.suffix != "bin" else COSMOS_GRID
    if grid is not None and "token_grid" in metadata:
        grid = validated(root / "metadata.json", _Grid, metadata).grid
    needed = {f"shard {i}": folder.shard(i) for i in range(meta.num_shards)}
    numbers = folder.samples(folder.suffix) if test else leave_out_absent(root, needed, leaving)
    shards = list((_samples if test else _shards)(folder, numbers, layout, grid, leaving))
    listed = list(_episodes(shards, grid, dict(enumerate(_noted(metadata, "recordings", list) or ()))))
    source = OnexSource(
        kind="1x-test" if test else "1x-raw" if grid is None else "1x-tokens",
        path=root,
        fps=meta.hz,
        layout=layout,
        episodes=tuple(episode for episode, _ in listed),
        places=tuple(place for _, place in listed),
        grid=grid,
        context_only=test,
        tokenizer=_noted(metadata, "tokenizer", str) if grid is not None else None,
        reading=_reading(metadata),
    )
    return source.sound(leaving)


def _noted(metadata: dict[str, Any], name: str, kind: type[T]) -> T | None:
    """Notes of our writers about the origin of the data."""
    provenance = metadata.get("provenance")
    found = provenance.get(name) if isinstance(provenance, dict) else None
    return found if isinstance(found, kind) else None


def _reading(metadata: dict[str, Any]) -> Reading:
    """How the data were read that the folder was made from; what nobody of ours can have noted is ignored."""
    try:
        return adapter(Reading).validate_python(_noted(metadata, "reading", dict) or {})
    except (ValidationError, UsageError):
        return Reading()


def _metadata(folder: _Folder, test: bool, report: Report) -> dict[str, Any]:
    """Read metadata.json, which a test set need not have; what is not in it is 1X's rate, and what the folder shows."""
    path = folder.root / "metadata.json"
    metadata = read_json(path) if path.exists() else {}
    absent = [key for key in ("num_shards", "hz") if key not in metadata]
    if "token_dtype" in metadata:
        found, fix = "its v1.x (one video.bin of tokens per folder)", "Download the v2.0 data set."
        raise DataError(path, expected="1X World Model Challenge v2.0", found=found, fix=fix, kind="format")
    if not path.exists() and not test:
        found = "no metadata.json, which is written last"
        fix = "Let the writer or the download finish, or start it again: it resumes."
        report(DataError(path, expected="a finished 1X v2.0 folder", found=found, fix=fix, kind="unfinished"))
    elif absent and not test:
        report(DataError(path, expected="numbers num_shards and hz", found=f"no {absent}", kind="metadata"))
    return {"num_shards": len(folder.markers()), "hz": 30} | metadata


def _shards(
    folder: _Folder, numbers: list[int], layout: StateLayout, grid: TokenGrid | None, leaving: LeavingOut
) -> Iterator[Shard]:
    """Shards whose files fit one another; others are left out."""
    for index in numbers:
        marker, video, states, segments = folder.shard(index)
        with leaving.around(f"shard {index}"):
            stated = validated(marker, _Marker, read_json(marker))
            rows = stated.shard_num_frames
            shard = Shard(index=index, num_frames=rows, video=video, states=states, segments=segments)
            problems = [*_faults(marker, stated, shard, layout), *(_block_faults(video, rows, grid) if grid else ())]
            for problem in problems:
                leaving.leave(f"shard {index} ({problem.path.name}: {problem.found})", problem)
            if rows == 0 and not problems:
                fix = "Take the shard out of the data set; it is left out here."
                empty = DataError(marker, expected="frames", found="a shard of none", fix=fix, kind="empty_episode")
                leaving.leave(f"shard {index} (of no frame)", empty, harmless=True)
            elif not problems:
                yield shard


def _faults(marker: Path, stated: _Marker, shard: Shard, layout: StateLayout) -> Iterator[DataError]:
    """Faults of a shard's files compared with its metadata."""
    if stated.shard_ind not in (None, shard.index):
        expected, found = f"shard_ind {shard.index}", f"{stated.shard_ind}"
        fix = "A shard may be there twice under two names: download them again, or correct shard_ind."
        yield DataError(marker, expected=expected, found=found, fix=fix, kind="duplicate")
    rows = shard.num_frames
    for path, columns, kind in ((shard.states, layout.dim, "float32"), (shard.segments, 1, "int32")):
        assert path is not None, "test samples have no marker"
        size = path.stat().st_size
        if size != 4 * rows * columns or not path.is_file():
            other = f", which would be {size // (4 * rows)} columns" if rows and size % (4 * rows) == 0 else ""
            expected, found = f"{rows} x {columns} {kind} = {4 * rows * columns} bytes", f"{size} bytes{other}"
            fix = "Download or write the shard again, or correct its metadata."
            yield unreadable(path, expected=expected, found=found, fix=fix)


def _block_faults(path: Path, num_frames: int, grid: TokenGrid) -> Iterator[DataError]:
    """Say where a file does not hold the token blocks of so many frames; a last partial block may be absent."""
    shape = (grid.latents_per_block, grid.height, grid.width)
    block, size = 4 * shape[0] * shape[1] * shape[2], path.stat().st_size
    allowed = {num_frames // grid.block, -(-num_frames // grid.block)}
    if size % block or size // block not in allowed or not path.is_file():
        yield unreadable(
            path,
            expected=f"{max(allowed)} blocks of {list(shape)} int32 ({block} bytes each) for {num_frames} frames",
            found=f"{size} bytes = {size / block:.3f} blocks",
            fix="Download or tokenize it again, or correct the token grid in metadata.json.",
        )


def _samples(
    folder: _Folder, numbers: list[int], layout: StateLayout, grid: TokenGrid | None, leaving: LeavingOut
) -> Iterator[Shard]:
    """Samples of the test set: frames or tokens of a context, and states of this and of what is to be forecast."""
    again = "Fetch the sample again."
    for index in numbers:
        with leaving.around(f"sample {index}"):
            _, video, states, _ = folder.shard(index)
            for path in (video, states):
                if not path.exists():
                    raise DataError(path, expected="one file per sample", found="no file", fix=again)
            for problem in _block_faults(video, grid.block, grid) if grid else ():
                raise problem
            rows, rest = divmod(states.stat().st_size, 4 * layout.dim)
            context = probe(video).num_frames if grid is None else grid.block
            if rest or rows < context:
                expected = f"rows of {layout.dim} float32, at least the {context} of the context"
                found = f"{states.stat().st_size} bytes, {rows} rows and {rest} bytes over"
                raise DataError(states, expected=expected, found=found, fix=again)
            yield Shard(index=index, num_frames=rows, video=video, states=states, segments=None)


def _episodes(
    shards: list[Shard], grid: TokenGrid | None, recordings: dict[int, Any]
) -> Iterator[tuple[Episode, Place]]:
    """The episodes of all shards; `recordings` says what a shard was made from, where a writer of ours noted it."""
    number = count()
    for shard in shards:
        test, rows = shard.segments is None, shard.num_frames
        segments = np.zeros(rows) if shard.segments is None else mapped(shard.segments, "int32", (rows,))
        recording = str(recordings[shard.index]) if shard.index in recordings else None
        for first, length in zip(*(part.tolist() for part in segment_runs(segments)), strict=True):
            name = f"sample {shard.index}" if test else f"shard {shard.index}, segment {segments[first]}"
            offset = 0 if grid is None else first % grid.block
            episode = Episode(index=next(number), length=length, name=name, block_offset=offset, recording=recording)
            yield episode, Place(shard, first)
