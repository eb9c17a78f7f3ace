"""Which windows of which episodes become clips: vectorised index arithmetic. Opens no file.

A window never leaves its episode. Token windows also lie on the block grid of their file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64

from worldline.formats.source import Source
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowIndex:
    """Windows in order: episode number and first frame within the episode."""

    episode: Int64[np.ndarray, "n"]
    start: Int64[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.episode)


def windows(
    lengths: Int[np.ndarray, "e"], *, window: int, stride: int, first: Int[np.ndarray, "e"] | int = 0
) -> WindowIndex:
    """All windows that start at `first`, `first + stride`, ... within episodes of these lengths."""
    if window < 1 or stride < 1:
        raise UsageError(f"a window of {window} frames at a stride of {stride} is no window; both must be >= 1")
    room = np.asarray(lengths, np.int64) - first - window
    counts = np.where(room >= 0, room // stride + 1, 0)
    episode = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(episode)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = np.broadcast_to(np.asarray(first, np.int64), counts.shape)
    return WindowIndex(episode=episode, start=offset[episode] + number * stride)


def source_windows(source: Source, *, window: int, stride: int, episodes: Sequence[int] | None = None) -> WindowIndex:
    """Windows over a source, or over some of its episodes. Reads nothing.

    Token sources: `window` and `stride` are multiples of the block, 34 and 34 for disjoint pairs of blocks, 34 and 17
    for overlapping ones; blocks that straddle a boundary are not used. On 1X shard 0 this gives 3,076 disjoint pairs
    (the report counts about 306,000 over 100 shards). Test samples give one window each, from frame 0.

    Raises:
        UsageError: a token source with a window or stride off its block grid.
    """
    chosen = np.array(range(len(source.episodes)) if episodes is None else episodes, np.int64)
    lengths = np.array([source.episodes[i].length for i in chosen], np.int64)
    first: np.ndarray | int = 0
    if source.context_only:
        stride = int(lengths.max(initial=1))
    elif source.grid is not None:
        block = source.grid.block
        if window % block or stride % block:
            raise UsageError(
                f"{source.path}: window {window} and stride {stride} must be multiples of the {block}-frame block"
            )
        first = -np.array([source.episodes[i].block_offset for i in chosen], np.int64) % block
    index = windows(lengths, window=window, stride=stride, first=first)
    return WindowIndex(episode=chosen[index.episode], start=index.start)


def some_windows(
    source: Source, episodes: Sequence[int], *, window: int, stride: int, what: str = "episodes"
) -> WindowIndex:
    """`source_windows` of some episodes. Raises `UsageError` where there is none, and says how long `what` are."""
    index = source_windows(source, window=window, stride=stride, episodes=episodes)
    if len(index) == 0:
        lengths = [source.episodes[i].length for i in episodes]
        raise UsageError(
            f"{source.path}: no window of {window} frames in the {len(lengths)} {what}, which have "
            f"{min(lengths, default=0)} to {max(lengths, default=0)} frames; choose longer episodes or a shorter window"
        )
    return index
