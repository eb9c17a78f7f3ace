"""Batches.

Which clip comes at (seed, step, rank) is a pure function, so a run resumes at any step without replay.

Knows nothing of what is in a clip.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader

from worldline.data.clips import Clips
from worldline.schema import Batch, Clip, UsageError, join, stack

IN_FLIGHT = 500_000_000
"""Bytes that the workers of one process may read ahead."""
PREFETCH = 2
"""Parts that each worker has begun, at most."""


def clip_keys(
    num_clips: int, *, seed: int, step: int, batch_size: int, rank: int, world_size: int
) -> list[tuple[int, int]]:
    """Numbers and augmentation seeds of the clips of one rank's batch at one step.

    Every epoch is a fresh permutation in which each clip comes once; ranks take disjoint parts of it. The
    global order depends on `batch_size * world_size` only, not on how it is split over ranks.
    """
    if num_clips < 1 or batch_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"cannot batch {num_clips} clips by {batch_size} on rank {rank} of {world_size}")
    begin = (step * world_size + rank) * batch_size
    keys: list[tuple[int, int]] = []
    for position in range(begin, begin + batch_size):
        epoch, offset = divmod(position, num_clips)
        draw = int(np.random.SeedSequence([seed, position]).generate_state(1)[0])
        keys.append((int(_permutation(num_clips, seed, epoch)[offset]), draw))
    return keys


@lru_cache(maxsize=4)
def _permutation(num_clips: int, seed: int, epoch: int) -> Int64[np.ndarray, "n"]:
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


class Loader:
    """Batches of clips in the order of `clip_keys`, piece by piece, the same for any number of workers.

    A piece is what goes through a model at once. No more is held than it, and what workers read ahead of it in parts:
    about `IN_FLIGHT` bytes, or one clip for each part that they have begun.
    """

    def __init__(
        self,
        clips: Clips,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pieces: int = 1,
    ) -> None:
        if not 1 <= pieces <= batch_size:
            raise UsageError(f"a batch of {batch_size} clips cannot be cut into {pieces} pieces; lower --accumulate")
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.rank, self.world_size, self.num_workers, self.pieces = rank, world_size, num_workers, pieces

    def keys(self, step: int) -> list[list[tuple[int, int]]]:
        """Clip numbers and augmentation seeds of this rank's batch at `step`: pieces of nearly equal size, in order."""
        keys = clip_keys(
            len(self.clips),
            seed=self.seed,
            step=step,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
        )
        edges = [round(i * len(keys) / self.pieces) for i in range(self.pieces + 1)]
        return [keys[a:b] for a, b in pairwise(edges)]

    def batch(self, step: int) -> Batch:
        """Read the whole batch of one step in this process."""
        return stack([self.clips[key] for piece in self.keys(step) for key in piece])

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Pieces of the batches of steps `start .. stop-1`, read ahead by the workers.

        Workers are started here and end here.
        """
        pieces = (piece for step in range(start, stop) for piece in self.keys(step))
        if self.num_workers == 0:
            yield from (stack([self.clips[key] for key in piece]) for piece in pieces)
            return
        size = clips_in_part(clip_bytes(self.clips[0]), -(-self.batch_size // self.pieces), self.num_workers)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["worldline.data.clips"])
        parts = iter(
            DataLoader(
                self.clips,  # pyright: ignore[reportArgumentType] - any sequence will do
                batch_sampler=_Parts(self, start, stop, size),
                num_workers=self.num_workers,
                prefetch_factor=PREFETCH,
                collate_fn=stack,
                worker_init_fn=_outlives_termination,
                multiprocessing_context=context,
            )
        )
        yield from (join([next(parts) for _ in range(0, len(piece), size)]) for piece in pieces)


def _outlives_termination(_: int) -> None:
    """A scheduler sends SIGTERM to every process of a job; the training ends its workers itself, when it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def clip_bytes(clip: Clip | Batch) -> int:
    """Bytes of its tensors."""
    return sum(x.nbytes for x in (clip.states, clip.frames, clip.tokens, clip.latents) if x is not None)


def clips_in_part(size: int, piece: int, workers: int) -> int:
    """How many clips of `size` bytes a worker reads at once: what all have begun stays below `IN_FLIGHT`."""
    return max(1, min(piece, IN_FLIGHT // (PREFETCH * workers * max(1, size))))


class _Parts:
    """The keys of what workers read at once, computed when they are asked for: a batch sampler for `DataLoader`."""

    def __init__(self, loader: Loader, start: int, stop: int, size: int) -> None:
        self.loader, self.steps, self.size = loader, range(start, stop), size

    def __len__(self) -> int:
        return len(self.steps) * sum(-(-len(piece) // self.size) for piece in self.loader.keys(0))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for piece in self.loader.keys(step):
                yield from (piece[i : i + self.size] for i in range(0, len(piece), self.size))
