"""The 1X v2.0 layout: where the files of a shard lie, and how they are written (nested), raw video or tokens.

Every file is written under a temporary name and moved into place. `metadata/metadata_{r}.json` comes last and makes
shard r done; `metadata.json` comes after all shards: a folder without it is unfinished, and readers say so.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from worldline.files import atomic, write_array, write_json
from worldline.formats.video import encode
from worldline.schema import StateLayout, TokenGrid, UsageError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The files of one shard, or of one sample of the test set, and how many frames they hold."""

    index: int
    test: bool
    """Whether it is a sample: these have states and a video of their first frames alone."""
    marker: Path
    video: Path
    states: Path
    segments: Path
    num_frames: int = 0

    @property
    def name(self) -> str:
        return f"{'sample' if self.test else 'shard'} {self.index}"

    @property
    def files(self) -> list[Path]:
        return [self.video, self.states, *(() if self.test else (self.segments, self.marker))]


def shard_at(root: Path, index: int, *, suffix: str, nested: bool = True, test: bool = False) -> Shard:
    """Where the files of a shard lie: each kind in its folder, or all in one."""
    folders = ("videos", "robot_states", "segment_indices", "metadata")
    videos, states, segments, markers = (root / name if nested else root for name in folders)
    return Shard(
        index=index,
        test=test,
        marker=markers / f"metadata_{index}.json",
        video=videos / f"video_{index}{suffix}",
        states=states / f"states_{index}.bin",
        segments=segments / f"segment_idx_{index}.bin",
    )


def write_raw_shard(
    root: Path,
    shard: int,
    *,
    frames: Iterable[UInt8[np.ndarray, "h w 3"]],
    states: Float32[np.ndarray, "f s"],
    segments: Int32[np.ndarray, "f"],
    fps: float,
) -> None:
    """Write one shard of video, states and segment numbers. The same input gives the same bytes.

    Frames may come one by one, so that an episode need not be in memory. Raises what `encode` raises.
    """
    with _shard(shard_at(root, shard, suffix=".mp4"), states, segments) as path:
        encode(path, frames, fps=fps)


@contextmanager
def token_shard(
    root: Path, shard: int, *, states: Float32[np.ndarray, "f s"], segments: Int32[np.ndarray, "f"]
) -> Iterator[Callable[[int, Int32[np.ndarray, "n l h w"]], None]]:
    """Write one shard whose tokens come in pieces: what is given takes them, and the number of their first block.

    Pieces may come in any order; together they are all blocks, a last partial one or not. The shard is done when the
    block succeeds.
    """
    place = shard_at(root, shard, suffix=".bin")
    with _shard(place, states, segments) as path, atomic(path) as temporary, temporary.open("wb") as file:

        def put(first: int, tokens: Int32[np.ndarray, "n l h w"]) -> None:
            file.seek(first * tokens[0:1].nbytes)
            file.write(np.ascontiguousarray(tokens).data)

        yield put


@contextmanager
def _shard(shard: Shard, states: Float32[np.ndarray, "f s"], segments: Int32[np.ndarray, "f"]) -> Iterator[Path]:
    """What is written inside, to the path that is given, shows these rows; they are written after it."""
    for path in shard.files:
        path.parent.mkdir(parents=True, exist_ok=True)
    yield shard.video
    write_array(shard.states, states)
    write_array(shard.segments, segments)
    write_json(shard.marker, {"shard_num_frames": len(states), "shard_ind": shard.index})


def shard_done(root: Path, shard: int) -> bool:
    """Tell whether a shard, raw or of tokens, was written completely: its metadata come last."""
    places = [shard_at(root, shard, suffix=suffix) for suffix in (".mp4", ".bin")]
    return any(all(path.exists() for path in place.files) for place in places)


def finish_shards(
    root: Path,
    *,
    num_shards: int,
    num_images: int,
    fps: float,
    layout: StateLayout,
    grid: TokenGrid | None = None,
    provenance: dict[str, object],
) -> None:
    """Write `metadata.json`, which makes the shards a data set; `grid` is that of tokens. Raises if one is missing."""
    undone = [shard for shard in range(num_shards) if not shard_done(root, shard)]
    if undone:
        raise UsageError(f"{root}: cannot finish, {len(undone)} shards are not written, the first is {undone[0]}")
    content = {
        "num_shards": num_shards,
        "query": None,
        "hz": int(fps) if float(fps).is_integer() else fps,
        "num_images": num_images,
        "state_names": list(layout.names),
        "state_kinds": list(layout.kinds),
    }
    if grid is not None:
        content["token_grid"] = [grid.latents_per_block, grid.height, grid.width]
        content |= {name: getattr(grid, name) for name in ("vocab_size", "block", "temporal_stride")}
    write_json(root / "metadata.json", content | {"provenance": provenance})
