"""Turn any source of frames into a 1X token folder, once. Resumable; keyed by source, tokenizer and settings.

One shard per source episode. Within it, one segment per start offset: the episode from that frame on, cut to whole
blocks. More start offsets give a world more places to start from without a new format: to a reader they are segments.
With augmentation each start offset also has its own crop and colours: a world then sees every scene in many framings.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from worldline.data.augment import AugmentConfig, augment_frames
from worldline.data.cache import frame_chunks, frame_runs
from worldline.data.splits import recording_of
from worldline.formats.content import content_of
from worldline.formats.faults import check_episodes
from worldline.formats.onex.open import open_onex
from worldline.formats.onex.write import finish_shards, shard_done, token_shard
from worldline.formats.reading import reading
from worldline.formats.source import Source
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import TokenGrid, UsageError
from worldline.tokenizers.tokenizer import Tokenizer

_BLOCKS = 16
"""Blocks of 256x256 that are read at once, and of smaller frames."""


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """What was written and what was not."""

    folder: Path
    episodes: int
    blocks: int
    frames: int
    frames_left_out: int
    """Frames behind the last whole block of every start offset, summed."""
    episodes_too_short: int
    """Episodes without two adjacent blocks; they are in the folder but give no sample."""
    reused: int
    """Episodes that were there already."""

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.blocks} blocks of {self.episodes} episodes ({self.reused} were there already); "
            f"{self.frames_left_out} frames behind the last whole block left out, "
            f"{self.episodes_too_short} episodes too short for a sample"
        )

    def open(self) -> Source:
        """The tokens, to train on."""
        return open_onex(self.folder)


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
    """Tokenize episodes of a frame source into `out`. Killed and run again, it goes on where it stopped.

    Args:
        fingerprint: identity of the tokenizer's weights (`worldline.tokenizers.load.fingerprint`).
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
    if source.image_size is None:
        raise UsageError(f"{source.path} holds tokens already; there are no frames to tokenize")
    height, width = (size, size) if size else source.image_size
    if augment is not None:
        augment.keep_sides()
        if height != width:
            raise UsageError(
                f"augmentation crops squares, but frames are {height}x{width}; give them a size (--data.image-size)"
            )
    grid = tokenizer.grid(height, width)
    if augment is None and start_offsets > grid.block:
        raise UsageError(
            f"a block of {grid.block} frames has {grid.block} start offsets; with {start_offsets} of them some "
            f"tokens would be the same twice. Give --start-offsets {grid.block} or less"
        )
    check_episodes(source, episodes, size=size)
    key = {
        **source_key(source, fingerprint=fingerprint, episodes=episodes, size=size),
        "start_offsets": start_offsets,
        "augment": asdict(augment) if augment else None,
    }
    claim = Claim(file="tokenize.json", key=key, what="tokens")
    out = claim.folder_in(out) if in_cache else out
    offsets = [grid.block * number // start_offsets for number in range(start_offsets)]
    lengths = [source.episodes[episode].length for episode in episodes]
    spans = [_spans(length, grid.block, offsets) for length in lengths]

    def make(shard: int) -> None:
        episode, pieces = episodes[shard], _pieces(spans[shard], grid.block * blocks_at_once(height, width))
        chunks = frame_chunks(source, episode, size=None if augment else size)
        views = _views(chunks, pieces, augment, size=height, shard=shard)
        with _shard(out, shard, source.read_states(episode, 0, lengths[shard]), spans[shard], grid) as put:
            for view, (start, _, number) in zip(views, pieces, strict=True):
                put(number, start, tokenizer.encode(view[None].to(device or "cpu")).cpu().numpy())

    ranks, frames = ranks or Ranks(), sum(stop - start for found in spans for start, stop in found)
    with ranks.owning(out, claim=claim, wait=in_cache):
        shards = range(len(episodes))
        reused = ranks.made(shards, make, done=lambda shard: shard_done(out, shard), progress=progress)
        if ranks.writes:
            finish_shards(
                out,
                num_shards=len(episodes),
                num_images=frames,
                fps=source.fps,
                layout=source.layout,
                grid=grid,
                provenance=key
                | {"recordings": [recording_of(source, i) for i in episodes], "reading": reading(source, size)},
            )
    return TokenizeReport(
        folder=out,
        episodes=len(episodes),
        blocks=frames // grid.block,
        frames=frames,
        frames_left_out=sum(max(0, length - offset) for length in lengths for offset in offsets) - frames,
        episodes_too_short=sum(all(stop - start < 2 * grid.block for start, stop in found) for found in spans),
        reused=reused,
    )


def source_key(source: Source, *, fingerprint: str, episodes: Sequence[int], size: int | None) -> dict[str, object]:
    """What anything encoded from a source depends on: the data, the tokenizer and the picture size."""
    return {
        "source_kind": source.kind,
        "content": content_of(source, episodes),
        "states": list(source.layout.names),
        "episodes": list(episodes),
        "tokenizer": fingerprint,
        "size": size,
    }


def _spans(length: int, block: int, offsets: Sequence[int]) -> list[tuple[int, int]]:
    """First frame and end of the whole blocks from each start offset on, where there is one."""
    return [(start, start + (length - start) // block * block) for start in offsets if length - start >= block]


def blocks_at_once(height: int, width: int) -> int:
    """Blocks of one episode that are read, and go through the tokenizer, together: fewer where frames are large."""
    return max(1, min(_BLOCKS, _BLOCKS * 256 * 256 // (height * width)))


def _pieces(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int, int]]:
    """Every span cut into pieces of so many frames, in the order in which they begin: first frame, end, number."""
    return sorted(
        (begin, min(begin + length, stop), number)
        for number, (start, stop) in enumerate(spans)
        for begin in range(start, stop, length)
    )


def _views(
    chunks: Iterator[UInt8[Tensor, "t 3 h w"]],
    pieces: Sequence[tuple[int, int, int]],
    augment: AugmentConfig | None,
    *,
    size: int,
    shard: int,
) -> Iterator[UInt8[Tensor, "n 3 y x"]]:
    """The frames of each piece while the episode goes by; augmented, each start offset in its own way."""
    firsts: dict[int, Tensor] = {}
    for frames, (_, _, number) in zip(frame_runs(chunks, [piece[:2] for piece in pieces]), pieces, strict=True):
        if augment is None:
            yield frames
            continue
        first = firsts.setdefault(number, frames[0].clone())
        seed = np.random.SeedSequence([shard, number]).generate_state(1)[0]
        yield augment_frames(frames, augment, size=size, seed=int(seed), first=first)


@contextmanager
def _shard(
    out: Path, shard: int, states: Float32[np.ndarray, "t s"], spans: Sequence[tuple[int, int]], grid: TokenGrid
) -> Iterator[Callable[[int, int, Int64[np.ndarray, "1 m gh gw"]], None]]:
    """One episode's shard. It takes the number of a start offset, a frame and the tokens from there on."""
    rows = np.concatenate([np.arange(0), *(np.arange(*span) for span in spans)])
    segments = np.repeat(np.arange(len(spans), dtype=np.int32), [stop - start for start, stop in spans])
    firsts = np.cumsum([0, *((stop - start) // grid.block for start, stop in spans)])
    with token_shard(out, shard, states=states[rows], segments=segments) as put:

        def put_from(number: int, start: int, tokens: Int64[np.ndarray, "1 m gh gw"]) -> None:
            blocks = rearrange(tokens[0], "(n l) gh gw -> n l gh gw", l=grid.latents_per_block).astype(np.int32)
            put(int(firsts[number]) + (start - spans[number][0]) // grid.block, blocks)

        yield put_from
