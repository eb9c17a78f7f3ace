"""Turn any source of frames into a 1X token folder, once. Resumable; keyed by source, tokenizer and settings.

One shard per source episode. Within it, one segment per start offset: the episode from that frame on, cut to whole
blocks. More start offsets give a world more places to start from without a new format: to a reader they are segments.
With augmentation each start offset also has its own crop and colours: a world then sees every scene in many framings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from worldline.data.augment import AugmentConfig, augment_frames
from worldline.data.cache import frame_chunks, frame_runs
from worldline.encoding.origin import Made, origin_of, source_key
from worldline.formats.faults import check_episodes
from worldline.formats.onex.write import finish_shards, shard_done, token_shard
from worldline.formats.source import Source
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import UsageError
from worldline.tokenizers.tokenizer import Tokenizer

_BLOCKS = 16
"""Blocks of 256x256 that are read at once, and of smaller frames."""


@dataclass(frozen=True, kw_only=True)
class TokenizeReport(Made):
    """Counts of written and left-out data."""

    blocks: int
    frames: int
    frames_left_out: int
    """Frames behind the last whole block of every start offset, summed."""
    episodes_too_short: int
    """Episodes without two adjacent blocks; they are in the folder but give no sample."""

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.blocks} blocks of {self.episodes} episodes ({self.reused} were there already); "
            f"{self.frames_left_out} frames behind the last whole block left out, "
            f"{self.episodes_too_short} episodes too short for a sample"
        )


def tokenize(
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    *,
    fingerprint: str,
    episodes: Sequence[int],
    size: int | None = None,
    start_offsets: int = 1,
    augment: AugmentConfig | None = None,
    device: torch.device | None = None,
    ranks: Ranks | None = None,
    in_cache: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizeReport:
    """Tokenize episodes of a frame source into `out`. If it is killed, the same call continues.

    Args:
        fingerprint: identity of the tokenizer's weights (`worldline.families.tokenizers.fingerprint`).
        episodes: which episodes of the source, in order.
        size: centre-crop and resize frames to this square first; None keeps them.
        start_offsets: start offsets per episode, spread evenly over a block.
        augment: crop and recolour each start offset of each episode in its own way, a pure function of their numbers.
        device: where the tokenizer is; None is the CPU.
        ranks: the processes that share the work; each must call this.
        in_cache: into a folder of `out` that is named after all that the tokens depend on. Where another job is
            filling it, that is waited for instead of refused.

    Raises:
        UsageError: `out` holds tokens of another source, tokenizer or setting, or is in use; the source holds no
            frames; or augmentation flips them or meets oblong ones without a `size`.
    """
    height, width = _size(source, size, augment)
    grid = tokenizer.grid(height, width)
    if augment is None and start_offsets > grid.block:
        raise UsageError(
            f"a block of {grid.block} frames has {grid.block} start offsets; with {start_offsets} of them some "
            f"tokens would be the same twice. Give --start-offsets {grid.block} or less"
        )
    check_episodes(source, episodes, size=size)
    key = {
        **source_key(source, episodes, size=size, tokenizer=fingerprint),
        "start_offsets": start_offsets,
        "augment": asdict(augment) if augment else None,
    }
    claim = Claim(file="tokenize.json", key=key, what="tokens")
    out = claim.folder_in(out) if in_cache else out
    offsets = [grid.block * number // start_offsets for number in range(start_offsets)]
    lengths = [source.episodes[episode].length for episode in episodes]
    spans = [_spans(length, grid.block, offsets) for length in lengths]

    def make(shard: int) -> None:
        states, segments = source.read_states(episodes[shard], 0, lengths[shard]), np.arange(len(spans[shard]))
        rows = [np.arange(*span) for span in spans[shard]]
        segments = np.repeat(segments.astype(np.int32), [len(part) for part in rows])
        pieces = _pieces(spans[shard], grid.block, blocks_at_once(height, width))
        chunks = frame_chunks(source, episodes[shard], size=None if augment else size)
        views = _views(chunks, pieces, augment, size=height, shard=shard)
        with token_shard(out, shard, states=states[np.concatenate([np.arange(0), *rows])], segments=segments) as put:
            for view, piece in zip(views, pieces, strict=True):
                tokens = tokenizer.encode(view[None].to(device or "cpu"))[0].cpu().numpy().astype(np.int32)
                put(piece.block, rearrange(tokens, "(n l) gh gw -> n l gh gw", l=grid.latents_per_block))

    ranks, frames = ranks or Ranks(), sum(stop - start for found in spans for start, stop in found)
    with ranks.owning(out, claim=claim, wait=in_cache):
        shards = range(len(episodes))
        reused = ranks.made(shards, make, done=partial(shard_done, out), progress=progress)
        if ranks.writes:
            noted = key | origin_of(source, episodes, size=size)
            rate = {"num_shards": len(episodes), "num_images": frames, "fps": source.fps}
            finish_shards(out, **rate, layout=source.layout, grid=grid, provenance=noted)
    return TokenizeReport(
        folder=out,
        episodes=len(episodes),
        blocks=frames // grid.block,
        frames=frames,
        frames_left_out=sum(max(0, length - offset) for length in lengths for offset in offsets) - frames,
        episodes_too_short=sum(all(stop - start < 2 * grid.block for start, stop in found) for found in spans),
        reused=reused,
    )


def _size(source: Source, size: int | None, augment: AugmentConfig | None) -> tuple[int, int]:
    """Height and width of what is tokenized. Raises `UsageError` where that cannot be."""
    if source.image_size is None:
        raise UsageError(f"{source.path} holds tokens already; there are no frames to tokenize")
    height, width = (size, size) if size else source.image_size
    if augment is not None:
        augment.keep_sides()
        if height != width:
            raise UsageError(
                f"augmentation crops squares, but frames are {height}x{width}; give them a size (--data.image-size)"
            )
    return height, width


def _spans(length: int, block: int, offsets: Sequence[int]) -> list[tuple[int, int]]:
    """First frame and end of the whole blocks from each start offset on, where there is one."""
    return [(start, start + (length - start) // block * block) for start in offsets if length - start >= block]


def blocks_at_once(height: int, width: int) -> int:
    """Blocks of one episode that are read, and go through the tokenizer, together: fewer where frames are large."""
    return max(1, min(_BLOCKS, _BLOCKS * 256 * 256 // (height * width)))


class _Piece(NamedTuple):
    """Frames of an episode that go through the tokenizer together."""

    start: int
    stop: int
    number: int
    """Of the start offset."""
    block: int
    """The first block of the shard that they make."""


def _pieces(spans: Sequence[tuple[int, int]], block: int, at_once: int) -> list[_Piece]:
    """Every span cut into pieces of so many blocks, in the order in which they begin."""
    firsts = np.cumsum([0, *((stop - start) // block for start, stop in spans)]).tolist()
    return sorted(
        _Piece(begin, min(begin + block * at_once, stop), number, firsts[number] + (begin - start) // block)
        for number, (start, stop) in enumerate(spans)
        for begin in range(start, stop, block * at_once)
    )


def _views(
    chunks: Iterator[UInt8[Tensor, "t 3 h w"]],
    pieces: Sequence[_Piece],
    augment: AugmentConfig | None,
    *,
    size: int,
    shard: int,
) -> Iterator[UInt8[Tensor, "n 3 y x"]]:
    """The frames of each piece while the episode goes by; augmented, each start offset in its own way."""
    firsts: dict[int, Tensor] = {}
    for frames, piece in zip(frame_runs(chunks, [piece[:2] for piece in pieces]), pieces, strict=True):
        if augment is None:
            yield frames
            continue
        first = firsts.setdefault(piece.number, frames[0].clone())
        seed = np.random.SeedSequence([shard, piece.number]).generate_state(1)[0]
        yield augment_frames(frames, augment, size=size, seed=int(seed), first=first)
