"""The 1X v2.0 formats, raw and tokens: training (nested), validation (flat), test (one sample per file).

An episode is a maximal run of equal segment numbers within a shard. Files are mapped and read lazily; token
blocks of 17 frames count from the first frame of the shard, and a last partial block is dropped because how
it was padded is not documented. Knows nothing of windows beyond "both ends on the block grid".
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from worldline.files import mapped
from worldline.formats.checks import Report, check_finite, check_totals, check_window
from worldline.formats.pairing import CLOCK_SLACK, rate, runs_at
from worldline.formats.source import Source
from worldline.formats.video import frame_times, probe, stream_frames
from worldline.schema import Clip, DataError, TokenGrid, UsageError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard's files and how many frames they hold."""

    index: int
    num_frames: int
    video: Path
    states: Path
    segments: Path | None
    """None in the test set: one sample is one file."""


class Place(NamedTuple):
    """Where an episode lies: its shard, and its first frame there."""

    shard: Shard
    first: int


@dataclass(frozen=True, kw_only=True, eq=False)
class OnexSource(Source):
    """Episodes of a 1X v2.0 folder, tokens or video."""

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Read a window. In the test set `start` is 0, and tokens or frames are those of the context alone."""
        states = torch.from_numpy(self.read_states(episode, start, stop))
        until = min(stop, len(self.shown(episode))) if self.context_only and self.grid is None else stop
        frames = torch.cat(list(self.frames(episode, start, until))) if self.grid is None else None
        tokens = None if self.grid is None else self._tokens(episode, start, stop, self.grid)
        origin = self.origin(episode, start)
        return Clip(states=states, fps=self.fps, origin=origin, frames=frames, tokens=tokens)

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Decode frames `start .. stop-1` in pieces of bounded size: row i of a shard is frame i of its video."""
        check_window(self.episodes[episode], start, stop)
        shown = self.shown(episode)
        if stop > len(shown):
            raise UsageError(f"{self.path}: a test sample holds the {len(shown)} frames of its context, not {stop}")
        return stream_frames(self.places[episode].shard.video, shown[start:stop], threads=threads)

    def shown(self, episode: int) -> Int64[np.ndarray, "n"]:
        """The frame of the shard's video that shows each row; in the test set, of the rows that are shown.

        Raises:
            DataError: it has not all of them, or another rate.
        """
        shard, first = self.places[episode]
        times = frame_times(shard.video).seconds
        fix = "Download or encode it again, or correct the metadata."
        if len(times) < shard.num_frames and not self.context_only:
            expected, found = f"{shard.num_frames} frames, one per row of states", f"{len(times)}"
            raise DataError(shard.video, expected=expected, found=found, fix=fix, kind="frames")
        if not runs_at(times, self.fps, slack=CLOCK_SLACK):
            expected, found = f"{self.fps:g} frames per second, as metadata.json says", f"{rate(times):.4g}"
            raise DataError(shard.video, expected=expected, found=found, fix=fix, kind="rate")
        return np.arange(first, min(first + self.episodes[episode].length, len(times)))

    def check_footage(self, episodes: Sequence[int], report: Report) -> None:
        """Report token ids outside the vocabulary, or a video that is longer than its states."""
        shard, grid = self.places[episodes[0]].shard, self.grid
        if grid is not None:
            block = (grid.latents_per_block, grid.height, grid.width)
            # No partial last block is read.
            count = min(shard.video.stat().st_size // (4 * math.prod(block)), shard.num_frames // grid.block)
            check_ids(shard.video, mapped(shard.video, "int32", (count, *block)), grid, 0)
        elif len(frame_times(shard.video)) > shard.num_frames:
            expected, found = f"{shard.num_frames} frames, one per row of states", f"{len(frame_times(shard.video))}"
            fix = "Encode it again, or correct the metadata."
            report(DataError(shard.video, expected=expected, found=found, fix=fix, kind="frames"))

    def claims(self, report: Report, extremes: Float64[np.ndarray, "2 s"] | None = None) -> None:
        path, frames = self.path / "metadata.json", sum(episode.length for episode in self.episodes)
        if path.exists() and not self.left_out:
            check_totals(path, {"num_images": frames}, report)

    def check(self, episode: int) -> tuple[int, int] | None:
        super().check(episode)
        if self.grid is not None:
            return None
        shard = self.places[episode].shard
        info = probe(shard.video)
        if info.num_frames != shard.num_frames or abs(info.fps - self.fps) > 0.005 * self.fps:
            self.shown(episode)
        return info.size

    def frame_size(self, episode: int) -> tuple[int, int]:
        return probe(self.places[episode].shard.video).size

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        check_window(self.episodes[episode], start, stop)
        shard, first = self.places[episode]
        table = mapped(shard.states, "float32", (shard.num_frames, self.layout.dim))
        rows = np.array(table[first + start : first + stop])
        check_finite(shard.states, rows, self.layout.names, first + start)
        return rows

    def footage(self, episode: int) -> tuple[Path, int]:
        shard, first = self.places[episode]
        return shard.video, first

    def _tokens(self, episode: int, start: int, stop: int, grid: TokenGrid) -> Int64[Tensor, "l gh gw"]:
        shard, first = self.places[episode]
        begin, end, blocks = first + start, first + stop, shard.num_frames // grid.block
        if self.context_only:
            if start != 0 or stop < grid.block:
                raise UsageError(
                    f"{self.path}: a test sample is read from frame 0 and holds {grid.block} context frames"
                )
            end, blocks = grid.block, 1
        if begin % grid.block or end % grid.block:
            raise UsageError(
                f"{self.path}: frames {begin}..{end - 1} of shard {shard.index} do not lie on its blocks of "
                f"{grid.block} frames; choose windows with worldline.data.clips.source_windows"
            )
        table = mapped(shard.video, "int32", (blocks, grid.latents_per_block, grid.height, grid.width))
        tokens = np.array(table[begin // grid.block : end // grid.block], np.int64)
        check_ids(shard.video, tokens, grid, begin // grid.block)
        return torch.from_numpy(tokens.reshape(-1, grid.height, grid.width))


def check_ids(path: Path, blocks: np.ndarray, grid: TokenGrid, first_block: int) -> None:
    """Raise `DataError` naming the first block with a token id outside the vocabulary."""
    wrong = ((blocks < 0) | (blocks >= grid.vocab_size)).any(axis=(1, 2, 3))
    if wrong.any():
        i = int(wrong.argmax())
        raise DataError(
            path,
            expected=f"token ids in 0..{grid.vocab_size - 1}",
            found=f"{blocks[i].min()}..{blocks[i].max()} in block {first_block + i} ({wrong.sum()} such blocks)",
            fix="Tokenize again, or check the vocabulary size in metadata.json.",
            kind="tokens",
        )


def segment_runs(segments: np.ndarray) -> tuple[Int64[np.ndarray, "e"], Int64[np.ndarray, "e"]]:
    """First frame and length of every maximal run of equal segment numbers."""
    firsts = np.flatnonzero(np.diff(segments, prepend=segments[:1] - 1)).astype(np.int64)
    return firsts, np.diff(firsts, append=len(segments))
