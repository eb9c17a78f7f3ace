"""Batches. The clips at (seed, step, rank) are a pure function, so a run resumes at any step without replay."""

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader

from worldline.data.clips import Clips
from worldline.schema import Batch, Clip, contents_of, join, stack

IN_FLIGHT = 500_000_000
"""Bytes that the workers of one process may read ahead."""
PREFETCH = 2
"""Largest number of parts that a worker has started."""

Key = tuple[int, int]
"""Number and augmentation seed of a clip."""


def clip_keys(num_clips: int, *, seed: int, step: int, batch_size: int, rank: int, world_size: int) -> list[Key]:
    """The clips of one rank's batch at one step.

    Every epoch is a fresh permutation in which each clip comes once; ranks take disjoint parts of it. The
    global order depends on `batch_size * world_size` only, not on how it is split over ranks.
    """
    begin = (step * world_size + rank) * batch_size
    keys: list[Key] = []
    for position in range(begin, begin + batch_size):
        epoch, offset = divmod(position, num_clips)
        draw = int(np.random.SeedSequence([seed, position]).generate_state(1)[0])
        keys.append((int(_permutation(num_clips, seed, epoch)[offset]), draw))
    return keys


@lru_cache(maxsize=4)
def _permutation(num_clips: int, seed: int, epoch: int) -> Int64[np.ndarray, "n"]:
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


@dataclass(frozen=True)
class Loader:
    """Batches of clips in the order of `clip_keys`, piece by piece, the same for any number of workers.

    A piece is what goes through a model at once. No more is held than it, and what workers read ahead of it in parts:
    about `IN_FLIGHT` bytes, or one clip for each part that they have begun.
    """

    clips: Clips
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    pieces: int = 1

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Pieces of the batches of steps `start .. stop-1`, read ahead by workers that start and end here."""
        if self.num_workers == 0:
            yield from (stack([self.clips[key] for key in piece]) for piece in self._pieces(start, stop))
            return
        size = clips_in_part(clip_bytes(self.clips[0]), -(-self.batch_size // self.pieces), self.num_workers)

        def parts(piece: list[Key]) -> list[list[Key]]:
            return [piece[i : i + size] for i in range(0, len(piece), size)]

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["worldline.data.clips"])
        read = iter(
            DataLoader(
                self.clips,  # pyright: ignore[reportArgumentType] - any sequence will do
                batch_sampler=chain.from_iterable(map(parts, self._pieces(start, stop))),  # pyright: ignore[reportArgumentType] - so for keys
                num_workers=self.num_workers,
                prefetch_factor=PREFETCH,
                collate_fn=stack,
                worker_init_fn=_outlives_termination,
                generator=torch.Generator(),  # its own: it draws a seed, which would move the noise of a dropout
                multiprocessing_context=context,
            )
        )
        for piece in self._pieces(start, stop):
            yield join([next(read) for _ in parts(piece)])

    def _pieces(self, start: int, stop: int) -> Iterator[list[Key]]:
        """This rank's batches of these steps in pieces of nearly equal size, computed when needed."""
        share = {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}
        for step in range(start, stop):
            keys = clip_keys(len(self.clips), seed=self.seed, step=step, **share)
            edges = [round(i * len(keys) / self.pieces) for i in range(self.pieces + 1)]
            yield from (keys[a:b] for a, b in pairwise(edges))


def _outlives_termination(_: int) -> None:
    """A scheduler sends SIGTERM to every process of a job; the training ends its workers itself, when it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def clip_bytes(clip: Clip | Batch) -> int:
    """Bytes of its tensors."""
    return sum(x.nbytes for x in contents_of(clip).values())


def clips_in_part(size: int, piece: int, workers: int) -> int:
    """Number of clips of `size` bytes that a worker reads at once, so that all together stay below `IN_FLIGHT`."""
    return max(1, min(piece, IN_FLIGHT // (PREFETCH * workers * max(1, size))))
