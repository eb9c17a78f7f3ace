"""Folders that are made of a source, resumable after a kill; the plainest of them, any video in the 1X raw layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from worldline.data.cache import Progress, frame_chunks
from worldline.data.splits import recording_of
from worldline.files import hash_of
from worldline.formats.faults import check_episodes
from worldline.formats.onex.write import finish_shards, shard_done, write_raw_shard
from worldline.formats.source import Source, content_of
from worldline.owner import Claim
from worldline.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Made:
    """A folder that was made of a source."""

    folder: Path
    counts: dict[str, int]
    """Of `episodes`, of those that were `reused` because they were there already, and of what was made of them."""

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        return f"{self.folder}: {counts}"


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
    progress: Progress | None = None,
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
        reused = ranks.made(range(len(episodes)), partial(make, out), done=partial(done, out), progress=progress)
        if ranks.writes:
            noted = {
                "made_from": str(source.path),
                "recordings": [recording_of(source, episode) for episode in episodes],
                "reading": asdict(source.read_at(size)),
                "left_out": list(source.left_out),
            }
            finish(out, provenance=depends | noted)
    return Made(folder=out, counts={"episodes": len(episodes), "reused": reused, **counts})


def convert(
    source: Source, out: Path, *, size: int | None, ranks: Ranks | None = None, progress: Progress | None = None
) -> Made:
    """Write every episode of a source to `out` as one shard of 1X raw video at `size` px (None: as stored).

    A killed run leaves a folder without `metadata.json`, which readers refuse; the next call goes on from there.
    Raises what `fill` raises. Counts `frames`, and the episodes `left_out` that the source lists and does not give.
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
        ranks=ranks,
        progress=progress,
    )
