"""Noise of sample k of a clip: it depends on (seed, clip, k) alone, and is drawn on the CPU, alike on all machines."""

from collections.abc import Sequence

import numpy as np
import torch

from worldline.schema import Origin


def clip_seeds(seed: int, origins: Sequence[Origin]) -> tuple[int, ...]:
    """One seed per clip, from the episode and frame where it begins."""
    return tuple(_mixed(seed, origin.episode, origin.start) for origin in origins)


def chunk_seeds(seeds: Sequence[int], chunk: int) -> tuple[int, ...]:
    """Seeds of the noise of one chunk of a session; the first chunk begins as a forecast with these seeds."""
    return tuple(seeds) if chunk == 0 else tuple(_mixed(seed, chunk, 1) for seed in seeds)


def generators(seeds: Sequence[int], num_samples: int) -> list[torch.Generator]:
    """One generator for each sample of each clip, in the order `(b k)`."""
    return [torch.Generator().manual_seed(_mixed(seed, k)) for seed in seeds for k in range(num_samples)]


def _mixed(*numbers: int) -> int:
    """Numbers without a pattern from numbers with one; torch reads 32 bits of it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])
