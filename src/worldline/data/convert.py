"""Convert any source of video to the 1X raw layout, one episode per shard; resumable after a kill.

Knows no format but the one it writes.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from worldline.data.cache import Progress, frame_chunks
from worldline.data.splits import recording_of
from worldline.formats.content import content_of
from worldline.formats.faults import check_episodes
from worldline.formats.onex.write import finish_shards, shard_done, write_raw_shard
from worldline.formats.reading import reading
from worldline.formats.source import Source
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion did."""

    out: Path
    episodes: int
    already_done: int
    """Episodes found complete from an earlier run."""
    frames: int
    bytes: int
    """Size of the whole folder."""
    seconds: float
    left_out: int
    """Episodes that the source lists and does not give."""

    def __str__(self) -> str:
        left_out = f", {self.left_out} listed episodes were left out" if self.left_out else ""
        return f"{self.out}: {self.episodes} episodes, {self.frames} frames, {self.bytes / 1e6:.1f} MB{left_out}"


def convert(
    source: Source, out: Path, *, size: int | None, ranks: Ranks | None = None, progress: Progress | None = None
) -> ConvertReport:
    """Write every episode of a source to `out` as one shard of 1X raw video at `size` px (None: as stored).

    A killed run leaves a folder without `metadata.json`, which readers refuse; the next call goes on from
    there. A few dozen frames are held in memory at a time. Several ranks share the episodes; each must call this.

    Raises:
        UsageError: the source has no video, or `out` holds something else or is in use.
        DataError: a video does not decode, or states are not as the metadata say.
    """
    if source.image_size is None:
        raise UsageError(f"{source.path}: only video can be converted, this is {source.kind}")
    check_episodes(source, range(len(source.episodes)), size=size)
    started, ranks = time.monotonic(), ranks or Ranks()
    frames, key = sum(episode.length for episode in source.episodes), _provenance(source, size)
    with ranks.owning(out, claim=Claim(file="conversion.json", key=key, what="a conversion")):
        already_done = ranks.made(
            range(len(source.episodes)),
            lambda episode: _write(source, out, episode, size),
            done=lambda episode: shard_done(out, episode),
            progress=progress,
        )
        if ranks.writes:
            finish_shards(
                out,
                num_shards=len(source.episodes),
                num_images=frames,
                fps=source.fps,
                layout=source.layout,
                provenance=key
                | {
                    "converted_from": str(source.path),
                    "left_out": list(source.left_out),
                    "reading": reading(source, size),
                    "recordings": [recording_of(source, episode.index) for episode in source.episodes],
                },
            )
    return ConvertReport(
        out=out,
        episodes=len(source.episodes),
        already_done=already_done,
        frames=frames,
        bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        seconds=time.monotonic() - started,
        left_out=len(source.left_out),
    )


def _provenance(source: Source, size: int | None) -> dict[str, object]:
    return {
        "kind": source.kind,
        "content": content_of(source, range(len(source.episodes))),
        "image_size": size,
        "state_names": list(source.layout.names),
    }


def _write(source: Source, out: Path, episode: int, size: int | None) -> None:
    length = source.episodes[episode].length
    states = source.read_states(episode, 0, length)
    chunks = frame_chunks(source, episode, size=size)
    write_raw_shard(
        out,
        episode,
        frames=(frame for chunk in chunks for frame in rearrange(chunk, "f c h w -> f h w c").numpy()),
        states=states,
        segments=np.zeros(length, np.int32),
        fps=source.fps,
    )
