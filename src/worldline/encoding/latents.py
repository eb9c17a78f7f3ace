"""Encode any source of frames to windows of latents, once. Resumable; keyed by source, VAE and settings.

Several ranks may share the work: each takes every `world_size`-th episode, and when all are done rank 0 writes the
metadata that make the folder readable.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from worldline.contract import FramePattern
from worldline.data.cache import frame_chunks, frame_runs
from worldline.data.windows import some_windows
from worldline.encoding.origin import Made, origin_of, source_key
from worldline.formats.encoded import CLAIM, episode_done, finish, written_episode
from worldline.formats.faults import check_episodes
from worldline.formats.source import Source
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import UsageError
from worldline.tokenizers.tokenizer import LatentTokenizer


@dataclass(frozen=True, kw_only=True)
class EncodeReport(Made):
    """Counts of written and left-out data."""

    windows: int
    episodes_too_short: int
    """Episodes without a whole window; they are in the folder but give no clip."""

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.windows} windows of {self.episodes} episodes ({self.reused} were there already); "
            f"{self.episodes_too_short} episodes too short for a window"
        )


def encode(
    source: Source,
    tokenizer: LatentTokenizer,
    out: Path,
    *,
    fingerprint: str,
    episodes: Sequence[int],
    pattern: FramePattern,
    window_stride: int,
    size: int | None = None,
    batch_size: int = 8,
    device: torch.device | None = None,
    ranks: Ranks | None = None,
    in_cache: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EncodeReport:
    """Encode windows of a frame source into `out`. If it is killed, the same call continues.

    Args, besides those of `worldline.encoding.tokens.tokenize`:
        pattern: which frames of a window are encoded.
        window_stride: frames between the starts of successive windows.
        batch_size: windows that are encoded at once.

    Raises:
        UsageError: frames that do not fit the VAE, a source without frames, or a folder of other settings or in use.
    """
    if source.image_size is None:
        raise UsageError(f"{source.path} holds no frames; there is nothing to encode")
    grid = tokenizer.grid(*((size, size) if size else source.image_size))
    in_window = grid.latents_of(len(pattern.frames))
    index = some_windows(source, episodes, window=pattern.window, stride=window_stride)
    starts = [index.start[index.episode == episode] for episode in episodes]
    check_episodes(source, episodes, size=size)
    key = {
        **source_key(source, episodes, size=size, tokenizer=fingerprint),
        "pattern": asdict(pattern),
        "window_stride": window_stride,
    }
    claim = Claim(file=CLAIM, key=key, what="latents")
    out = claim.folder_in(out) if in_cache else out

    def make(number: int) -> None:
        states = source.read_states(episodes[number], 0, source.episodes[episodes[number]].length)
        shape = (len(starts[number]), in_window, grid.channels, grid.height, grid.width)
        chunks = frame_chunks(source, episodes[number], size=size)
        with written_episode(out, number, states=states, shape=shape) as append:
            for batch in _batches(chunks, starts[number], pattern, batch_size):
                append(tokenizer.encode(batch.to(device or "cpu")).cpu().numpy())

    ranks = ranks or Ranks()
    with ranks.owning(out, claim=claim, wait=in_cache):
        numbers = range(len(episodes))
        reused = ranks.made(numbers, make, done=lambda number: episode_done(out, number), progress=progress)
        if ranks.writes:
            finish(out, source, episodes, grid, origin_of(source, episodes, size=size))
    return EncodeReport(
        folder=out,
        episodes=len(episodes),
        windows=sum(map(len, starts)),
        episodes_too_short=sum(len(found) == 0 for found in starts),
        reused=reused,
    )


def _batches(
    chunks: Iterator[UInt8[Tensor, "t 3 h w"]], starts: np.ndarray, pattern: FramePattern, batch_size: int
) -> Iterator[UInt8[Tensor, "b f 3 h w"]]:
    """The frames of all windows, so many windows at a time, while the episode goes by."""
    taken = torch.tensor(pattern.frames)
    parts = [starts[i : i + batch_size].tolist() for i in range(0, len(starts), batch_size)]
    runs = frame_runs(chunks, [(part[0], part[-1] + pattern.window) for part in parts])
    for part, frames in zip(parts, runs, strict=True):
        yield torch.stack([frames[start - part[0] + taken] for start in part])
