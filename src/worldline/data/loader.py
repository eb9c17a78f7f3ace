"""Batches.

Which clip comes at (seed, step, rank) is a pure function, so a run resumes at any step without replay.

Knows nothing of what is in a clip.
"""

import multiprocessing
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader

from worldline.data.clips import Clips
from worldline.schema import Batch, UsageError, stack


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
    """Batches of clips in the order of `clip_keys`, the same for any number of workers."""

    def __init__(
        self,
        clips: Clips,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers

    def keys(self, step: int) -> list[tuple[int, int]]:
        """Clip numbers and augmentation seeds of this rank's batch at `step`."""
        return clip_keys(
            len(self.clips),
            seed=self.seed,
            step=step,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
        )

    def batch(self, step: int) -> Batch:
        """Read the batch of one step in this process."""
        return stack([self.clips[key] for key in self.keys(step)])

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps `start .. stop-1`, read ahead by the workers.

        Workers are started here and end here.
        """
        if self.num_workers == 0:
            yield from (self.batch(step) for step in range(start, stop))
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["worldline.data.clips"])
        yield from DataLoader(
            self.clips,  # pyright: ignore[reportArgumentType] - any sequence will do
            batch_sampler=_Steps(self, start, stop),
            num_workers=self.num_workers,
            collate_fn=stack,
            multiprocessing_context=context,
        )


class _Steps:
    """The keys of successive steps, computed when they are asked for: a batch sampler for `DataLoader`."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.loader, self.steps = loader, range(start, stop)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self.loader.keys(step) for step in self.steps)
