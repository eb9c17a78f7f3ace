"""Encode any source of frames to windows of latents, once. Resumable; keyed by source, VAE and settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from worldline.contract import FramePattern
from worldline.data.cache import Progress, frame_chunks, frame_runs
from worldline.data.clips import some_windows
from worldline.encoding.convert import Made, fill
from worldline.formats.encoded import CLAIM, episode_done, finish, written_episode
from worldline.formats.source import Source
from worldline.ranks import Ranks
from worldline.schema import LatentGrid
from worldline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EncodeReport(Made):
    """Counts of written and left-out data."""

    windows: int
    episodes_too_short: int
    """Episodes without a whole window; they are in the folder but give no clip."""


def encode(
    source: Source,
    tokenizer: Tokenizer[LatentGrid],
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
    progress: Progress | None = None,
) -> EncodeReport:
    """Encode windows of a frame source into `out`. If it is killed, the same call continues.

    Args, besides those of `worldline.encoding.tokens.tokenize`:
        pattern: which frames of a window are encoded.
        window_stride: frames between the starts of successive windows.
        batch_size: windows that are encoded at once.

    Raises what `fill` raises, and `UsageError` for frames that do not fit the VAE.
    """
    grid = tokenizer.grid(*source.video_size(size))
    in_window, taken = grid.latents_of(len(pattern.frames)), torch.tensor(pattern.frames)
    index = some_windows(source, episodes, window=pattern.window, stride=window_stride)
    starts = [index.start[index.episode == episode].tolist() for episode in episodes]

    def make(out: Path, number: int) -> None:
        states = source.read_states(episodes[number], 0, source.episodes[episodes[number]].length)
        shape = (len(starts[number]), in_window, grid.channels, grid.height, grid.width)
        batches = [starts[number][i : i + batch_size] for i in range(0, len(starts[number]), batch_size)]
        spans = [(batch[0], batch[-1] + pattern.window) for batch in batches]
        runs = frame_runs(frame_chunks(source, episodes[number], size=size), spans)
        with written_episode(out, number, states=states, shape=shape) as append:
            for batch, frames in zip(batches, runs, strict=True):
                windows = torch.stack([frames[start - batch[0] + taken] for start in batch])
                append(tokenizer.encode(windows.to(device or "cpu")).cpu().numpy())

    done = fill(
        out,
        source,
        episodes,
        size=size,
        claim=(CLAIM, "latents"),
        settings={"tokenizer": fingerprint, "pattern": asdict(pattern), "window_stride": window_stride},
        make=make,
        done=episode_done,
        finish=partial(finish, source=source, episodes=episodes, grid=grid),
        ranks=ranks,
        in_cache=in_cache,
        progress=progress,
    )
    too_short = sum(not found for found in starts)
    return EncodeReport(**done, windows=sum(map(len, starts)), episodes_too_short=too_short)
