"""Folders made of any source of frames, once, on disk, resumable: 1X raw video, tokens, or windows of latents.

Tokens are a 1X token folder of one shard per episode. Within it, one segment per start offset: the episode from that
frame on, cut to whole blocks. More of them give a world more places to start from, and with augmentation each has its
own crop and colours: a world then sees every scene in many framings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig, augment_frames
from worldline.data.cache import frame_chunks, frame_runs
from worldline.data.clips import check_episodes, some_windows
from worldline.data.splits import content_of, recording_of
from worldline.files import hash_of
from worldline.formats import encoded
from worldline.formats.onex.write import finish_shards, shard_done, token_shard, write_raw_shard
from worldline.formats.source import Source
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import LatentGrid, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Made:
    """A folder that was made of a source."""

    folder: Path
    counts: dict[str, int]
    """Of `episodes`, of those that were `reused` because they were there already, and of what was made of them."""
    psnr: float | None = None
    """Of new video against what was encoded, where that was measured; dB."""

    @property
    def found(self) -> dict[str, int | float]:
        """All numbers, by name."""
        return self.counts | ({} if self.psnr is None else {"psnr": round(self.psnr, 2)})

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        return f"{self.folder}: {counts}" + ("" if self.psnr is None else f"; video {self.psnr:.1f} dB PSNR")


def fill(
    out: Path,
    source: Source,
    episodes: Sequence[int],
    *,
    size: int | None,
    claim: tuple[str, str],
    settings: Mapping[str, Any],
    counts: Mapping[str, int],
    make: Callable[[Path, int], None],
    done: Callable[[Path, int], bool],
    finish: Callable[..., None],
    ranks: Ranks | None = None,
    in_cache: bool = False,
) -> Made:
    """Make a folder of some episodes. Several ranks share them, each must call this.

    Args:
        claim: the file that says what the folder depends on, and its content for messages.
        settings: what it depends on, besides the source, the episodes and the size of frames.
        counts: what there will be in it, for the result.
        make: makes one of `range(len(episodes))`, `done` says whether it is made, `finish` notes the source at last.
        in_cache: into a folder of `out` that is named after all that the result depends on. Where another job is
            filling it, that is waited for instead of refused.

    Raises `UsageError` where the source has no video, or the folder holds something else or is in use, and `DataError`
    where a video does not decode or states are not as the metadata say.
    """
    source.video_size()  # refuses what holds no video
    check_episodes(source, episodes, size=size)
    depends = {"source_kind": source.kind, "content": content_of(source, episodes), "states": list(source.layout.names)}
    depends |= {"episodes": list(episodes), "size": size, **settings}
    claimed, ranks = Claim(file=claim[0], key=depends, what=claim[1]), ranks or Ranks()
    out = out / f"{claimed.what}-{hash_of(depends):.16}" if in_cache else out
    with ranks.owning(out, claim=claimed, wait=in_cache):
        reused = ranks.made(
            range(len(episodes)), partial(make, out), done=partial(done, out), what=f"making {claimed.what}"
        )
        if ranks.writes:
            noted = {
                "made_from": str(source.path),
                "recordings": [recording_of(source, episode) for episode in episodes],
                "reading": asdict(source.read_at(size)),
                "left_out": list(source.left_out),
            }
            finish(out, provenance=depends | noted)
    return Made(folder=out, counts={"episodes": len(episodes), "reused": reused, **counts})


def convert(source: Source, out: Path, *, size: int | None, **how: Any) -> Made:
    """Write every episode of a source to `out` as one shard of 1X raw video at `size` px (None: as stored).

    A killed run leaves a folder without `metadata.json`, which readers refuse; the next call goes on from there.
    `how` is as in `fill`, which also says what is raised. Counts `frames`, and the listed episodes that are `left_out`.
    """
    lengths = [episode.length for episode in source.episodes]

    def make(out: Path, episode: int) -> None:
        chunks = frame_chunks(source, episode, size=size)
        write_raw_shard(
            out,
            episode,
            frames=(frame for chunk in chunks for frame in rearrange(chunk, "f c h w -> f h w c").numpy()),
            states=source.read_states(episode),
            segments=np.zeros(lengths[episode], np.int32),
            fps=source.fps,
        )

    total = {"num_shards": len(lengths), "num_images": sum(lengths)}
    return fill(
        out,
        source,
        range(len(lengths)),
        size=size,
        claim=("conversion.json", "a conversion"),
        settings={},
        counts={"frames": sum(lengths), "left_out": len(source.left_out)},
        make=make,
        done=shard_done,
        finish=partial(finish_shards, **total, fps=source.fps, layout=source.layout),
        **how,
    )


def tokenize(
    source: Source,
    tokenizer: Tokenizer[TokenGrid],
    out: Path,
    *,
    fingerprint: str,
    episodes: Sequence[int],
    size: int | None = None,
    start_offsets: int = 1,
    augment: AugmentConfig | None = None,
    device: torch.device | None = None,
    **how: Any,
) -> Made:
    """Tokenize episodes of a frame source into `out`. If it is killed, the same call continues.

    Args, besides `ranks` and `in_cache` of `fill`:
        fingerprint: identity of the tokenizer's weights (`worldline.families.tokenizers.fingerprint`).
        episodes: which episodes of the source, in order.
        size: centre-crop and resize frames to this square first; None keeps them.
        start_offsets: start offsets per episode, spread evenly over a block.
        augment: crop and recolour each start offset of each episode in its own way, a pure function of their numbers.
        device: where the tokenizer is; None is the CPU.

    Counts `blocks`, `frames`, `frames_left_out` (behind the last whole block of every start offset, summed) and
    `episodes_too_short` (without two adjacent blocks; they are in the folder but give no sample).
    Raises what `fill` raises, and `UsageError` where augmentation flips frames or meets oblong ones without a `size`.
    """
    height, width = source.video_size(size)
    grid = tokenizer.grid(height, width)
    _check(grid, (height, width), start_offsets, augment)
    offsets = [grid.block * number // start_offsets for number in range(start_offsets)]
    lengths = [source.episodes[episode].length for episode in episodes]
    spans = [_whole_blocks(length, offsets, grid.block) for length in lengths]
    counts = _counts(lengths, offsets, spans, grid.block)
    at_once = grid.block * blocks_at_once(height, width)

    def make(out: Path, shard: int) -> None:
        rows, segments = _rows(spans[shard])
        states = source.read_states(episodes[shard])[rows]
        pieces = _pieces(spans[shard], at_once=at_once, block=grid.block)
        chunks = frame_chunks(source, episodes[shard], size=None if augment else size)
        runs = frame_runs(chunks, [(piece.start, piece.stop) for piece in pieces])
        if augment is not None:
            runs = _augmented(runs, pieces, augment, size=height, shard=shard)
        with token_shard(out, shard, states=states, segments=segments) as put:
            for frames, piece in zip(runs, pieces, strict=True):
                tokens = tokenizer.encode(frames[None].to(device or "cpu"))[0].cpu().numpy().astype(np.int32)
                put(piece.block, rearrange(tokens, "(n l) gh gw -> n l gh gw", l=grid.latents_per_block))

    total = {"num_shards": len(episodes), "num_images": counts["frames"]}
    return fill(
        out,
        source,
        episodes,
        size=size,
        claim=("tokenize.json", "tokens"),
        settings={"tokenizer": fingerprint, "start_offsets": start_offsets, "augment": augment and asdict(augment)},
        counts=counts,
        make=make,
        done=shard_done,
        finish=partial(finish_shards, **total, fps=source.fps, layout=source.layout, grid=grid),
        **how,
    )


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
    **how: Any,
) -> Made:
    """Encode windows of a frame source into `out`. If it is killed, the same call continues.

    Args, besides those of `tokenize`:
        pattern: which frames of a window are encoded.
        window_stride: frames between the starts of successive windows.
        batch_size: windows that are encoded at once.

    Counts `windows` and `episodes_too_short` (without a whole window; they are in the folder but give no clip).
    Raises what `fill` raises, and `UsageError` for frames that do not fit the VAE.
    """
    grid = tokenizer.grid(*source.video_size(size))
    in_window, taken = grid.latents_of(len(pattern.frames)), torch.tensor(pattern.frames)
    index = some_windows(source, episodes, window=pattern.window, stride=window_stride)
    starts = [index[index[:, 0] == episode, 1].tolist() for episode in episodes]

    def make(out: Path, number: int) -> None:
        states = source.read_states(episodes[number])
        shape = (len(starts[number]), in_window, grid.channels, grid.height, grid.width)
        batches = [starts[number][i : i + batch_size] for i in range(0, len(starts[number]), batch_size)]
        spans = [(batch[0], batch[-1] + pattern.window) for batch in batches]
        runs = frame_runs(frame_chunks(source, episodes[number], size=size), spans)
        with encoded.written_episode(out, number, states=states, shape=shape) as append:
            for batch, frames in zip(batches, runs, strict=True):
                windows = torch.stack([frames[start - batch[0] + taken] for start in batch])
                append(tokenizer.encode(windows.to(device or "cpu")).cpu().numpy())

    return fill(
        out,
        source,
        episodes,
        size=size,
        claim=(encoded.CLAIM, "latents"),
        settings={"tokenizer": fingerprint, "pattern": asdict(pattern), "window_stride": window_stride},
        counts={"windows": sum(map(len, starts)), "episodes_too_short": sum(not found for found in starts)},
        make=make,
        done=encoded.episode_done,
        finish=partial(encoded.finish, source=source, episodes=episodes, grid=grid),
        **how,
    )


def _check(grid: TokenGrid, size: tuple[int, int], start_offsets: int, augment: AugmentConfig | None) -> None:
    """Raise `UsageError` where frames of this size cannot be augmented, or offsets would repeat one another."""
    if augment is not None:
        augment.keep_sides()
        if size[0] != size[1]:
            raise UsageError(
                f"augmentation crops squares, but frames are {size[0]}x{size[1]}; give them a size (--data.image-size)"
            )
    elif start_offsets > grid.block:
        raise UsageError(
            f"a block of {grid.block} frames has {grid.block} start offsets; with {start_offsets} of them some "
            f"tokens would be the same twice. Give --start-offsets {grid.block} or less"
        )


def blocks_at_once(height: int, width: int) -> int:
    """Blocks of one episode that are read, and go through the tokenizer, together: 16, fewer of more than 256x256."""
    return max(1, min(16, 16 * 256 * 256 // (height * width)))


# --- the frames of a shard of tokens ---

Spans = list[tuple[int, int]]
"""Of an episode the whole blocks from each start offset on: their first frame and their end. In its shard they lie one
after another, each a segment."""


class _Piece(NamedTuple):
    """Frames of an episode that go through the tokenizer together."""

    start: int
    stop: int
    segment: int
    block: int
    """Of the shard, where their tokens begin."""


def _whole_blocks(length: int, offsets: Sequence[int], block: int) -> Spans:
    """The spans of an episode; offsets without a whole block behind them have none."""
    return [(first, first + (length - first) // block * block) for first in offsets if length - first >= block]


def _rows(spans: Spans) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """The frames of an episode as they lie in its shard, and the segment of each."""
    counts = np.array([stop - first for first, stop in spans], np.int64)
    rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(*span) for span in spans)])
    return rows, np.repeat(np.arange(len(spans), dtype=np.int32), counts)


def _pieces(spans: Spans, *, at_once: int, block: int) -> list[_Piece]:
    """The pieces of an episode, of at most so many frames, in the order in which it goes by."""
    pieces, begin = [], 0
    for segment, (first, stop) in enumerate(spans):
        for start in range(first, stop, at_once):
            pieces.append(_Piece(start, min(start + at_once, stop), segment, (begin + start - first) // block))
        begin += stop - first
    return sorted(pieces)


def _augmented(
    runs: Iterator[UInt8[Tensor, "n 3 h w"]], pieces: list[_Piece], augment: AugmentConfig, *, size: int, shard: int
) -> Iterator[UInt8[Tensor, "n 3 s s"]]:
    """The frames of the pieces of an episode, cropped and recoloured: each segment in its own way."""
    firsts: dict[int, Tensor] = {}
    for frames, piece in zip(runs, pieces, strict=True):
        first = firsts.setdefault(piece.segment, frames[0].clone())
        seed = np.random.SeedSequence([shard, piece.segment]).generate_state(1)[0]
        yield augment_frames(frames, augment, size=size, seed=int(seed), first=first)


def _counts(lengths: list[int], offsets: list[int], spans: list[Spans], block: int) -> dict[str, int]:
    """What the tokens of episodes of these lengths hold, and what they leave out."""
    frames = sum(stop - first for found in spans for first, stop in found)
    return {
        "blocks": frames // block,
        "frames": frames,
        "frames_left_out": sum(max(0, length - offset) for length in lengths for offset in offsets) - frames,
        "episodes_too_short": sum(all(stop - first < 2 * block for first, stop in found) for found in spans),
    }
