"""The 1X v2.0 formats, raw and tokens: training (nested), validation (flat), test (one sample per file).

An episode is a maximal run of equal segment numbers within a shard. Files are mapped and read lazily; token
blocks of 17 frames count from the first frame of the shard, and a last partial block is dropped because how
it was padded is not documented. Knows nothing of windows beyond "both ends on the block grid".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int32, Int64, UInt8
from torch import Tensor

from worldline.files import mapped
from worldline.formats.checks import Report, check_totals
from worldline.formats.source import Source
from worldline.formats.video import CLOCK_SLACK, frame_times, probe, rate, runs_at, stream_frames
from worldline.schema import DataError, Episode, TokenGrid, UsageError

FOLDERS = ("videos", "robot_states", "segment_indices", "metadata")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The files of one shard, or of one sample of the test set, and how many frames they hold."""

    index: int
    test: bool
    """Whether it is a sample: these have states and a video of their first frames alone."""
    marker: Path
    video: Path
    states: Path
    segments: Path
    num_frames: int = 0

    @property
    def name(self) -> str:
        return f"{'sample' if self.test else 'shard'} {self.index}"

    @property
    def files(self) -> list[Path]:
        return [self.video, self.states, *(() if self.test else (self.segments, self.marker))]


def shard_at(root: Path, index: int, *, suffix: str, nested: bool = True, test: bool = False) -> Shard:
    """Where the files of a shard lie: each kind in its folder, or all in one."""
    videos, states, segments, markers = (root / name if nested else root for name in FOLDERS)
    return Shard(
        index=index,
        test=test,
        marker=markers / f"metadata_{index}.json",
        video=videos / f"video_{index}{suffix}",
        states=states / f"states_{index}.bin",
        segments=segments / f"segment_idx_{index}.bin",
    )


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
