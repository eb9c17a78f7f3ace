"""Frames decoded once, at one size, into uint8 memory maps: windows from mp4 are too slow for training.



One `.npy` per episode, written atomically, in a folder named after the data set's identity and the size; what
is there already is kept. States still come from the original files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.files import mapped_npy, npy_rows
from worldline.formats.checks import check_window
from worldline.formats.content import footage_of
from worldline.formats.lerobot.source import LerobotSource
from worldline.formats.onex.source import OnexSource
from worldline.formats.source import Source
from worldline.formats.video import resize
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import (
    Clip,
    DataError,
    Episode,
    Origin,
    StateLayout,
    TokenGrid,
    UsageError,
)

Progress = Callable[[int, int], None]
"""Called with (done, total) after every episode."""

_CHUNK = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedSource:
    """A source of frames whose pixels lie decoded in memory maps. A `Source`."""

    inner: Source
    folder: Path
    size: int

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def path(self) -> Path:
        return self.inner.path

    @property
    def fps(self) -> float:
        return self.inner.fps

    @property
    def layout(self) -> StateLayout:
        return self.inner.layout

    @property
    def episodes(self) -> tuple[Episode, ...]:
        return self.inner.episodes

    @property
    def image_size(self) -> tuple[int, int] | None:
        return (self.size, self.size)

    @property
    def grid(self) -> TokenGrid | None:
        return None

    @property
    def left_out(self) -> tuple[str, ...]:
        return self.inner.left_out

    def read(self, episode: int, start: int, stop: int) -> Clip:
        """Read states, and frames from the map. Raises `DataError` where the episode was not cached."""
        states = torch.from_numpy(self.read_states(episode, start, stop))
        path = episode_file(self.folder, episode)
        frames = _frames(path, (self.episodes[episode].length, 3, self.size, self.size))[start:stop]
        origin = Origin(source=str(self.path), episode=episode, start=start)
        return Clip(states=states, fps=self.fps, origin=origin, frames=torch.from_numpy(np.array(frames)))

    def read_states(self, episode: int, start: int, stop: int) -> Float32[np.ndarray, "t s"]:
        """Read states alone."""
        check_window(self.episodes[episode], start, stop)
        return self.inner.read_states(episode, start, stop)


def cached_frames(
    source: Source,
    *,
    size: int,
    folder: Path,
    progress: Progress | None = None,
    episodes: Sequence[int] | None = None,
    ranks: Ranks | None = None,
) -> Source:
    """Decode every episode (or the chosen ones) to `size` px squares below `folder`, and read from there.

    Several ranks share the episodes; each must call this. Resumable: finished episodes are kept, and another data set,
    camera, size or changed video gets another folder, a copied or moved one does not. Takes `3 * size**2` bytes of disk
    a frame: 197 kB at 256 px.

    Raises:
        UsageError: the source has no video.
        DataError: a video does not decode.
    """
    if source.image_size is None:
        raise UsageError(f"{source.path}: only video can be cached, this is {source.kind}")
    if isinstance(source, CachedSource):
        source = source.inner
    place = folder / f"{footage_of(source, range(len(source.episodes)))[:16]}-{size}px"
    chosen, ranks = range(len(source.episodes)) if episodes is None else episodes, ranks or Ranks()

    def done(episode: int) -> bool:
        return episode_file(place, episode).exists()

    if not ranks.agreed(all(map(done, chosen))):
        claim = Claim(file="cache.json", key={"kind": source.kind, "size": size}, what="frames")
        with ranks.owning(place, claim=claim, wait=True):
            ranks.made(chosen, lambda episode: _write(place, source, episode, size), done=done, progress=progress)
    return CachedSource(inner=source, folder=place, size=size)


def episode_file(folder: Path, episode: int) -> Path:
    """Where the frames of an episode are cached."""
    return folder / f"episode_{episode:06d}.npy"


def frame_chunks(source: Source, episode: int, *, size: int | None) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    """Go once over an episode's frames in bounded memory, scaled to `size`; None keeps the stored size."""
    length = source.episodes[episode].length
    if isinstance(source, OnexSource | LerobotSource):
        chunks = source.frames(episode, 0, length, threads=0)
    else:
        chunks = (_frames_of(source, episode, i, min(i + _CHUNK, length)) for i in range(0, length, _CHUNK))
    return chunks if size is None else (resize(chunk, size) for chunk in chunks)


def frame_runs(
    chunks: Iterator[UInt8[Tensor, "t 3 h w"]], spans: Sequence[tuple[int, int]]
) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
    """Cut spans (first frame, end) out of an episode that goes by once, in order of their first frames.

    Holds the frames from the first that a later span needs on, and no others.
    """
    held: list[Tensor] = []
    first = 0
    for start, stop in spans:
        while first + sum(map(len, held)) < stop:
            held.append(next(chunks))
            while held and first + len(held[0]) <= start:
                first += len(held.pop(0))
        yield torch.cat(held)[start - first : stop - first]


def _frames_of(source: Source, episode: int, start: int, stop: int) -> UInt8[Tensor, "t 3 h w"]:
    frames = source.read(episode, start, stop).frames
    if frames is None:
        raise UsageError(f"{source.path}: no video in this data set, it is {source.kind}")
    return frames


def _write(folder: Path, source: Source, episode: int, size: int) -> None:
    shape = (source.episodes[episode].length, 3, size, size)
    with npy_rows(episode_file(folder, episode), "uint8", shape) as append:
        for chunk in frame_chunks(source, episode, size=size):
            append(chunk.numpy())


def _frames(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    fix = "Delete it and cache again."
    table = mapped_npy(path, what="cached frames", fix=fix)
    if table.shape != shape or table.dtype != np.uint8:
        found = f"{table.dtype}{list(table.shape)}"
        raise DataError(path, expected=f"uint8{list(shape)}", found=found, fix=fix)
    return table
