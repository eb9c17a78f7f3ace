"""Which windows of which episodes become clips: pure index arithmetic, vectorised. Opens no file.

A window never leaves its episode. Token windows also lie on the block grid of their file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, Int32, Int64

from worldline.formats.onex.source import segment_runs
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


def token_windows(
    lengths: Int[np.ndarray, "e"],
    block_offsets: Int[np.ndarray, "e"],
    *,
    block: int = 17,
    blocks: int = 2,
    overlapping: bool = False,
) -> WindowIndex:
    """Runs of `blocks` adjacent token blocks within one episode, greedy and disjoint, or one at every block.

    `block_offsets` are the episodes' positions on the block grid (`Episode.block_offset`). Blocks that straddle a
    boundary are not used. On 1X shard 0 this gives 3,076 disjoint pairs (the report counts about 306,000 over 100
    shards).
    """
    first = -np.asarray(block_offsets, np.int64) % block
    return windows(lengths, window=blocks * block, stride=block if overlapping else blocks * block, first=first)


def source_windows(source: Source, *, window: int, stride: int, episodes: Sequence[int] | None = None) -> WindowIndex:
    """Windows over a source, or over some of its episodes. Reads nothing.

    Token sources: `window` and `stride` are multiples of the block, 34 and 34 for disjoint pairs of blocks,
    34 and 17 for overlapping ones. Test samples (`1x-test`) give one window each, from frame 0, whatever the
    stride.

    Raises:
        UsageError: a token source with a window or stride off its block grid.
    """
    chosen = range(len(source.episodes)) if episodes is None else episodes
    lengths = np.array([source.episodes[i].length for i in chosen], np.int64)
    block_offsets = np.array([source.episodes[i].block_offset for i in chosen], np.int64)
    if source.kind == "1x-test":
        index = windows(lengths, window=window, stride=int(lengths.max(initial=1)))
    elif source.grid is None:
        index = windows(lengths, window=window, stride=stride)
    elif window % source.grid.block or stride % source.grid.block:
        block = source.grid.block
        raise UsageError(
            f"{source.path}: window {window} and stride {stride} must be multiples of the {block}-frame block"
        )
    else:
        index = windows(lengths, window=window, stride=stride, first=-block_offsets % source.grid.block)
    return WindowIndex(episode=np.asarray(chosen, np.int64)[index.episode], start=index.start)


def segment_windows(
    segments: Int32[np.ndarray, "f"],
    *,
    window: int = 77,
    stride: int = 8,
    rule: Literal["exact", "team"] = "exact",
) -> WindowIndex:
    """Windows of one 1X shard at multiples of `stride` from each segment's start; episodes are its segments.

    `exact`: the window lies in one segment. `team`: the winning team's `segment[s] == segment[s + window]`,
    one frame more than needed. On 1X shard 0, 77 frames at 8: 11,301 and 11,266.
    """
    _, lengths = segment_runs(segments)
    return windows(lengths, window=window + (rule == "team"), stride=stride)


def straddling_blocks(segments: Int32[np.ndarray, "f"], *, block: int = 17) -> Int64[np.ndarray, "n"]:
    """Numbers of the token blocks of one shard that hold frames of more than one segment."""
    firsts, _ = segment_runs(segments)
    return np.unique(firsts[firsts % block != 0] // block)
