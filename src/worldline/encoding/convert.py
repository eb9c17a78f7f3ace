"""Convert any source of video to the 1X raw layout, one episode per shard; resumable after a kill."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from einops import rearrange

from worldline.data.cache import Progress, frame_chunks
from worldline.encoding.origin import Made, origin_of, source_key
from worldline.formats.faults import check_episodes
from worldline.formats.onex.write import finish_shards, shard_done, write_raw_shard
from worldline.formats.source import Source
from worldline.owner import Claim
from worldline.ranks import Ranks
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class ConvertReport(Made):
    """The result of a conversion."""

    frames: int
    bytes: int
    """Size of the whole folder."""
    left_out: int
    """Episodes that the source lists and does not give."""

    def __str__(self) -> str:
        left_out = f", {self.left_out} listed episodes were left out" if self.left_out else ""
        return f"{self.folder}: {self.episodes} episodes, {self.frames} frames, {self.bytes / 1e6:.1f} MB{left_out}"


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
    numbers, ranks = range(len(source.episodes)), ranks or Ranks()
    check_episodes(source, numbers, size=size)
    frames, key = sum(episode.length for episode in source.episodes), source_key(source, numbers, size=size)

    def make(episode: int) -> None:
        length, chunks = source.episodes[episode].length, frame_chunks(source, episode, size=size)
        write_raw_shard(
            out,
            episode,
            frames=(frame for chunk in chunks for frame in rearrange(chunk, "f c h w -> f h w c").numpy()),
            states=source.read_states(episode, 0, length),
            segments=np.zeros(length, np.int32),
            fps=source.fps,
        )

    with ranks.owning(out, claim=Claim(file="conversion.json", key=key, what="a conversion")):
        reused = ranks.made(numbers, make, done=partial(shard_done, out), progress=progress)
        if ranks.writes:
            noted = key | origin_of(source, numbers, size=size)
            rate = {"num_shards": len(numbers), "num_images": frames, "fps": source.fps}
            finish_shards(out, **rate, layout=source.layout, provenance=noted)
    return ConvertReport(
        folder=out,
        episodes=len(numbers),
        reused=reused,
        frames=frames,
        bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        left_out=len(source.left_out),
    )
