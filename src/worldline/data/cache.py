"""Frames decoded once, at one size, into uint8 memory maps, because random windows from mp4 are too slow for training.

One `.npy` per episode, in a folder named after the data set's identity and the size. States stay where they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldline.data.splits import footage_of
from worldline.files import mapped_npy, npy_rows
from worldline.formats.source import Source
from worldline.formats.video import resize
from worldline.owner import Claim
from worldline.ranks import Ranks


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedSource(Source):
    """A source of frames whose pixels lie decoded in memory maps."""

    inner: Source
    folder: Path

    def states_of(self, episode: int) -> tuple[Path, Float[np.ndarray, "n s"]]:
        return self.inner.states_of(episode)

    def footage(self, episode: int) -> tuple[Path, int]:
        return self.inner.footage(episode)

    def pairing(self, episode: int) -> str:
        return self.inner.pairing(episode)

    def frames(self, episode: int, start: int, stop: int, *, threads: int = 1) -> Iterator[UInt8[Tensor, "n 3 h w"]]:
        """Copy frames from the map. Raises `DataError` where the episode was not cached."""
        assert self.image_size is not None, "frames are cached"
        shape = (self.episodes[episode].length, 3, *self.image_size)
        table = mapped_npy(self.file(episode), np.uint8, shape, what="cached frames", fix="Delete it and cache again.")
        yield torch.from_numpy(np.array(table[start:stop]))

    def file(self, episode: int) -> Path:
        """The frames of an episode."""
        return self.folder / f"episode_{episode:06d}.npy"


def cached_frames(
    source: Source,
    *,
    size: int,
    folder: Path,
    episodes: Sequence[int] | None = None,
    ranks: Ranks | None = None,
) -> Source:
    """Decode every episode (or the chosen ones) to `size` px squares below `folder`, and read from there.

    Several ranks share the episodes; each must call this. Resumable: finished episodes are kept, and another data set,
    camera, size or changed video gets another folder, a copied or moved one does not. Takes `3 * size**2` bytes of disk
    a frame: 197 kB at 256 px. Raises `UsageError` for a source without video, `DataError` where one does not decode.
    """
    source.video_size()  # refuses what holds no video
    place = folder / f"{footage_of(source, range(len(source.episodes)))[:16]}-{size}px"
    same: dict[str, Any] = {field.name: getattr(source, field.name) for field in fields(Source)}
    same["image_size"] = (size, size)
    cached = CachedSource(**same, inner=source, folder=place)
    chosen, ranks = range(len(source.episodes)) if episodes is None else episodes, ranks or Ranks()

    def done(episode: int) -> bool:
        return cached.file(episode).exists()

    def make(episode: int) -> None:
        with npy_rows(cached.file(episode), "uint8", (source.episodes[episode].length, 3, size, size)) as append:
            for chunk in frame_chunks(source, episode, size=size):
                append(chunk.numpy())

    if not ranks.agreed(all(map(done, chosen))):
        claim = Claim(file="cache.json", key={"kind": source.kind, "size": size}, what="frames")
        with ranks.owning(place, claim=claim, wait=True):
            ranks.made(chosen, make, done=done, what=f"decoding frames into {place}")
    return cached


def frame_chunks(source: Source, episode: int, *, size: int | None) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    """An episode's frames once, in bounded memory, scaled to `size`; None keeps the stored size."""
    chunks = source.frames(episode, 0, source.episodes[episode].length, threads=0)
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
