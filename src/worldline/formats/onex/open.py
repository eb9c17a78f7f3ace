"""Find out the content of a 1X v2.0 folder and check that its files have the sizes given in its metadata.

Reads JSON, segment numbers and file sizes only. Faults go to `LeavingOut`: opening raises the first, inspection
collects them all.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from worldline.contract import Reading
from worldline.files import mapped, read_json, unreadable
from worldline.formats.checks import LeavingOut, leave_out_absent, validated
from worldline.formats.onex.source import OnexSource, Segment, Shard, segment_runs, shard_at
from worldline.formats.source import Source
from worldline.formats.states import ONEX_LAYOUT
from worldline.formats.video import probe
from worldline.schema import DataError, StateKind, StateLayout, TokenGrid, UsageError

_Count = Annotated[int, Field(gt=0, le=10**6)]


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """The used part of metadata.json. Grids are those of the challenge (Cosmos DV8x8x8 at 256x256) unless it says."""

    num_shards: Annotated[int, Field(ge=0, le=10**6)]
    hz: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)]
    state_names: tuple[str, ...] = ONEX_LAYOUT.names
    state_kinds: tuple[StateKind, ...] = ONEX_LAYOUT.kinds
    token_grid: tuple[_Count, _Count, _Count] = (3, 32, 32)
    vocab_size: Annotated[int, Field(gt=0, le=2**31)] = 64_000
    block: _Count = 17
    temporal_stride: _Count = 8

    def __post_init__(self) -> None:
        names, kinds, latents = self.state_names, self.state_kinds, self.grid.latents_per_block
        if len(names) != len(kinds) or len(set(names)) != len(names) or not names:
            raise UsageError(f"{len(set(names))} different state_names of {len(names)}, and {len(kinds)} state_kinds")
        if latents != self.token_grid[0]:
            raise UsageError(f"{latents} latent frames per block of {self.block}, but token_grid {self.token_grid}")

    @property
    def grid(self) -> TokenGrid:
        sizes = {name: getattr(self, name) for name in ("vocab_size", "block", "temporal_stride")}
        return TokenGrid(height=self.token_grid[1], width=self.token_grid[2], **sizes)


@dataclass(frozen=True, kw_only=True)
class _Provenance:
    """Notes of our writers about the origin of the data."""

    recordings: tuple[str, ...] = ()
    """What every shard was made from."""
    tokenizer: str | None = None
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class _Marker:
    """metadata_{r}.json."""

    shard_num_frames: Annotated[int, Field(ge=0, le=10**9)]
    shard_ind: int | None = None


def open_onex(root: Path, leaving: LeavingOut) -> Source:
    """Open a 1X v2.0 folder. Raises `DataError` for an unfinished, incomplete or inconsistent one.

    Files are nested (training) or flat (validation). A test set has samples without segment numbers; but a training
    folder being written has its folders already, and a shard of video its own metadata.
    """
    nested = (root / "videos").is_dir() or (root / "robot_states").is_dir()
    found = {path.suffix for path in root.glob("videos/video_*.*" if nested else "video_*.*")} & {".mp4", ".bin"}
    markers = list(root.glob("metadata/metadata_*.json" if nested else "metadata_*.json"))
    segmented = (root / ("segment_indices" if nested else "segment_idx_0.bin")).exists()
    test = bool(found) and not segmented and (".bin" in found or not markers)
    metadata, provenance = _metadata(root / "metadata.json", len(markers), test, leaving)
    grid = metadata.grid if found == {".bin"} else None
    shard_of = partial(shard_at, root, suffix=max(found, default=".mp4|bin"), nested=nested, test=test)
    numbers = range(metadata.num_shards)
    if test:  # whatever has a video or states
        files = [*shard_of(0).video.parent.glob("video_*.*"), *shard_of(0).states.parent.glob("states_*.bin")]
        numbers = sorted({int(number) for path in files if (number := path.stem.rpartition("_")[2]).isdecimal()})
    sound = list(_sound(root, [shard_of(i) for i in numbers], len(metadata.state_names), grid, leaving))
    source = OnexSource(
        kind="1x-test" if test else "1x-raw" if grid is None else "1x-tokens",
        path=root,
        fps=metadata.hz,
        layout=StateLayout(names=metadata.state_names, kinds=metadata.state_kinds),
        episodes=tuple(_segments(sound, grid, dict(enumerate(provenance.recordings)))),
        grid=grid,
        context_only=test,
        tokenizer=None if grid is None else provenance.tokenizer,
        reading=provenance.reading,
    )
    return source.sound(leaving)


def _metadata(path: Path, num_shards: int, test: bool, leaving: LeavingOut) -> tuple[_Metadata, _Provenance]:
    """Read metadata.json, which a test set need not have: without it the rate is 1X's, the rest what is found."""
    content: dict[str, Any] = {"num_shards": num_shards, "hz": 30} if test or not path.exists() else {}
    if path.exists():
        content |= read_json(path)
    elif not test:
        found = "no metadata.json, which is written last"
        fix = "Let the writer or the download finish, or start it again: it resumes."
        leaving.fault(DataError(path, expected="a finished 1X v2.0 folder", found=found, fix=fix, kind="unfinished"))
    if "token_dtype" in content:
        found, fix = "its v1.x (one video.bin of tokens per folder)", "Download the v2.0 data set."
        raise DataError(path, expected="1X World Model Challenge v2.0", found=found, fix=fix, kind="format")
    provenance = _Provenance()
    with suppress(DataError):  # what nobody of ours can have noted
        provenance = validated(path, _Provenance, content.get("provenance", {}))
    return validated(path, _Metadata, content), provenance


def _sound(root: Path, shards: list[Shard], dim: int, grid: TokenGrid | None, leaving: LeavingOut) -> Iterator[Shard]:
    """Shards whose files fit one another, with the number of their frames; others are left out."""
    for i in leave_out_absent(root, {shard.name: shard.files for shard in shards}, leaving):
        shard = shards[i]
        with leaving.around(shard.name):
            rows = shard.states.stat().st_size // (4 * dim)  # a sample has no other word on it
            if not shard.test:
                stated = validated(shard.marker, _Marker, read_json(shard.marker))
                rows = stated.shard_num_frames
                if stated.shard_ind not in (None, shard.index):
                    expected, found = f"shard_ind {shard.index}", f"{stated.shard_ind}"
                    fix = "A shard may be there twice under two names: download them again, or correct shard_ind."
                    raise DataError(shard.marker, expected=expected, found=found, fix=fix, kind="duplicate")
            shard = replace(shard, num_frames=rows)
            problems = list(_faults(shard, dim, grid))
            for problem in problems:
                leaving.leave(f"{shard.name} ({problem.path.name}: {problem.found})", problem)
            if not problems and rows == 0:
                fix = "Take the shard out of the data set; it is left out here."
                empty = DataError(root, expected="frames", found=f"{shard.name} of none", fix=fix, kind="empty_episode")
                leaving.leave(f"{shard.name} (of no frame)", empty, harmless=True)
            elif not problems:
                yield shard


def _faults(shard: Shard, dim: int, grid: TokenGrid | None) -> Iterator[DataError]:
    """Where the files of a shard do not hold its frames. Those of a sample show a context alone, and states beyond."""
    rows, shown = shard.num_frames, shard.num_frames
    tables: list[tuple[Path, tuple[int, ...], str, set[int]]] = [(shard.states, (dim,), "float32", {rows})]
    if shard.test:
        shown = probe(shard.video).num_frames if grid is None else grid.block
        if rows < shown:
            expected, fix = f"states of at least the {shown} frames of the context", "Fetch the sample again."
            yield DataError(shard.states, expected=expected, found=f"{rows} rows", fix=fix)
    else:
        tables.append((shard.segments, (1,), "int32", {rows}))
    if grid is not None:
        block = (grid.latents_per_block, grid.height, grid.width)
        counts = {shown // grid.block, -(-shown // grid.block)}  # a last part of a block may be absent
        tables.append((shard.video, block, "int32", counts))
    for path, shape, dtype, counts in tables:
        size, each = path.stat().st_size, 4 * prod(shape)
        if not path.is_file() or size not in {count * each for count in counts}:
            columns = len(shape) == 1 and rows and size % (4 * rows) == 0
            other = f"which would be {size // (4 * rows)} columns" if columns else f"{size / each:.3f} times that shape"
            expected = f"{max(counts)} times {list(shape)} {dtype} = {max(counts) * each} bytes for {rows} frames"
            fix = "Download or write it again, or correct the metadata."
            yield unreadable(path, expected=expected, found=f"{size} bytes, {other}", fix=fix)


def _segments(shards: list[Shard], grid: TokenGrid | None, recordings: dict[int, str]) -> Iterator[Segment]:
    """The episodes of all shards; `recordings` says what a shard was made from."""
    number = count()
    for shard in shards:
        rows = shard.num_frames
        segments = np.zeros(rows) if shard.test else mapped(shard.segments, "int32", (rows,))
        for first, length in zip(*(part.tolist() for part in segment_runs(segments)), strict=True):
            yield Segment(
                index=next(number),
                length=length,
                name=shard.name if shard.test else f"{shard.name}, segment {segments[first]}",
                block_offset=0 if grid is None else first % grid.block,
                recording=recordings.get(shard.index),
                shard=shard,
                first=first,
            )
