"""The 1X v2.0 formats, raw and tokens: training (nested), validation (flat), test (one sample per file).

An episode is a maximal run of equal segment numbers within a shard. Files are mapped and read lazily; opening reads
JSON, segment numbers and sizes of files only. Token blocks of 17 frames count from the first frame of the shard, and a
last partial block is dropped because how it was padded is not documented.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int32, Int64, UInt8
from pydantic import Field
from torch import Tensor

from worldline.contract import Reading
from worldline.files import mapped, read_json, unreadable
from worldline.formats.onex.write import Shard, shard_at
from worldline.formats.source import LeavingOut, Report, Source, check_totals, leave_out_absent, validated
from worldline.formats.states import ONEX_LAYOUT
from worldline.formats.video import CLOCK_SLACK, frame_times, probe, rate, runs_at, stream_frames
from worldline.schema import DataError, Episode, StateKind, StateLayout, TokenGrid, UsageError

_Count = Annotated[int, Field(gt=0, le=10**6)]


@dataclass(frozen=True, kw_only=True)
class Segment(Episode):
    """An episode, and where it lies: its shard, and its first frame there."""

    shard: Shard
    first: int


@dataclass(frozen=True, kw_only=True, eq=False)
class OnexSource(Source):
    """Episodes of a 1X v2.0 folder, tokens or video. Of a test sample, a window begins at 0 and shows the context."""

    episodes: tuple[Segment, ...]

    def shows(self, episode: int, start: int, stop: int) -> dict[str, Tensor]:
        of, grid = self.episodes[episode], self.grid
        if grid is None:
            return super().shows(episode, start, min(stop, len(self.shown(episode))) if self.context_only else stop)
        begin, end = of.first + start, of.first + stop
        if self.context_only:
            if start != 0 or stop < grid.block:
                raise UsageError(
                    f"{self.path}: a test sample is read from frame 0 and holds {grid.block} context frames"
                )
            end = grid.block
        if begin % grid.block or end % grid.block:
            raise UsageError(
                f"{self.path}: frames {begin}..{end - 1} of {of.shard.name} do not lie on its blocks of {grid.block} "
                "frames; choose windows with worldline.data.clips.source_windows"
            )
        tokens = np.array(self._blocks(of.shard, grid, begin // grid.block, end // grid.block), np.int64)
        return {"tokens": torch.from_numpy(tokens.reshape(-1, grid.height, grid.width))}

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Decode frames `start .. stop-1` in pieces of bounded size: row i of a shard is frame i of its video."""
        shown = self.shown(episode)
        if stop > len(shown):
            raise UsageError(f"{self.path}: a test sample holds the {len(shown)} frames of its context, not {stop}")
        return stream_frames(self.episodes[episode].shard.video, shown[start:stop], threads=threads)

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """The frame of the shard's video that shows each row; in the test set, of the rows that are shown."""
        of = self.episodes[episode]
        times = frame_times(of.shard.video).seconds
        if len(times) < of.shard.num_frames and not self.context_only:
            raise self._fault(of.shard, f"{of.shard.num_frames} frames, one per row of states", f"{len(times)}")
        if not runs_at(times, self.fps, slack=CLOCK_SLACK):
            expected = f"{self.fps:g} frames per second, as metadata.json says"
            raise self._fault(of.shard, expected, f"{rate(times):.4g}", "rate")
        return np.arange(of.first, min(of.first + of.length, len(times)))

    def _fault(self, shard: Shard, expected: str, found: str, kind: str = "frames") -> DataError:
        fix = "Download or encode it again, or correct the metadata."
        return DataError(shard.video, expected=expected, found=found, fix=fix, kind=kind)

    def check_footage(self, episodes: Sequence[int], report: Report) -> None:
        """Report token ids outside the vocabulary, or a video that is longer than its states."""
        shard = self.episodes[episodes[0]].shard
        if self.grid is not None:
            self._blocks(shard, self.grid)
        elif (count := len(frame_times(shard.video).ticks)) > shard.num_frames:
            report(self._fault(shard, f"{shard.num_frames} frames, one per row of states", f"{count}"))

    def claims(self, report: Report, extremes: Float64[np.ndarray, "2 s"] | None = None) -> None:
        path, frames = self.path / "metadata.json", sum(episode.length for episode in self.episodes)
        if path.exists() and not self.left_out:
            check_totals(path, {"num_images": frames}, report)

    def surely_shown(self, episode: int) -> bool:
        shard = self.episodes[episode].shard
        return self.grid is not None or probe(shard.video).holds(shard.num_frames, self.fps)

    def frame_size(self, episode: int) -> tuple[int, int] | None:
        return None if self.grid is not None else probe(self.episodes[episode].shard.video).size

    def states_of(self, episode: int) -> tuple[Path, Float[np.ndarray, "n s"]]:
        of = self.episodes[episode]
        table = mapped(of.shard.states, "float32", (of.shard.num_frames, self.layout.dim))
        return of.shard.states, table[of.first : of.first + of.length]

    def footage(self, episode: int) -> tuple[Path, int]:
        return self.episodes[episode].shard.video, self.episodes[episode].first

    def _blocks(
        self, shard: Shard, grid: TokenGrid, first: int = 0, stop: int | None = None
    ) -> Int32[np.ndarray, "n l gh gw"]:
        """Whole token blocks of a shard. Raises `DataError` naming the first with an id outside the vocabulary."""
        count = 1 if self.context_only else shard.num_frames // grid.block
        shape = (count, grid.latents_per_block, grid.height, grid.width)
        blocks = mapped(shard.video, "int32", shape)[first:stop]
        wrong = ((blocks < 0) | (blocks >= grid.vocab_size)).any(axis=(1, 2, 3))
        if wrong.any():
            i = int(wrong.argmax())
            expected = f"token ids in 0..{grid.vocab_size - 1}"
            found = f"{blocks[i].min()}..{blocks[i].max()} in block {first + i} ({wrong.sum()} such blocks)"
            fix = "Tokenize again, or check the vocabulary size in metadata.json."
            raise DataError(shard.video, expected=expected, found=found, fix=fix, kind="tokens")
        return blocks


def segment_runs(segments: np.ndarray) -> tuple[Int64[np.ndarray, "e"], Int64[np.ndarray, "e"]]:
    """First frame and length of every maximal run of equal segment numbers."""
    firsts = np.flatnonzero(np.diff(segments, prepend=segments[:1] - 1)).astype(np.int64)
    return firsts, np.diff(firsts, append=len(segments))


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
        problem = DataError(path, expected="a finished 1X v2.0 folder", found=found, fix=fix, kind="unfinished")
        if leaving.report is None:
            raise problem
        leaving.report(problem)
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
