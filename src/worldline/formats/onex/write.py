"""Write the 1X v2.0 layout (nested, as in its training set): raw video or tokens. Knows how bytes lie, not why.

Every file is written under a temporary name and moved into place; `metadata/metadata_{r}.json` comes last and
makes shard r done; `metadata.json` comes after all shards and makes the folder a data set. A folder without
it is unfinished, and readers say so.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from worldline.files import atomic, read_json, write_array, write_json
from worldline.formats.video import encode
from worldline.schema import DataError, StateLayout, TokenGrid, UsageError

FOLDERS = ("videos", "robot_states", "segment_indices", "metadata")


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

    Frames may come one by one, so that an episode need not be in memory.

    Raises:
        UsageError: an odd or empty image size, which H.264 in yuv420p cannot hold.
    """
    with _shard(root, shard, states, segments):
        encode(root / f"videos/video_{shard}.mp4", frames, fps=fps)


@contextmanager
def token_shard(
    root: Path, shard: int, *, states: Float32[np.ndarray, "f s"], segments: Int32[np.ndarray, "f"]
) -> Iterator[Callable[[int, Int32[np.ndarray, "n l h w"]], None]]:
    """Write one shard whose tokens come in pieces: what is given takes them, and the number of their first block.

    Pieces may come in any order; together they are all blocks, from the shard's first frame on. A last partial block
    may be present or left away, readers drop it. The shard is done when the block succeeds.
    """
    path = root / f"videos/video_{shard}.bin"
    with _shard(root, shard, states, segments), atomic(path) as temporary, temporary.open("wb") as file:

        def put(first: int, tokens: Int32[np.ndarray, "n l h w"]) -> None:
            file.seek(first * tokens[0:1].nbytes)
            file.write(np.ascontiguousarray(tokens).data)

        yield put


@contextmanager
def _shard(
    root: Path, shard: int, states: Float32[np.ndarray, "f s"], segments: Int32[np.ndarray, "f"]
) -> Iterator[None]:
    """What is written inside shows these rows; they are written after it."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    yield
    write_array(root / f"robot_states/states_{shard}.bin", states)
    write_array(root / f"segment_indices/segment_idx_{shard}.bin", segments)
    write_json(root / f"metadata/metadata_{shard}.json", {"shard_num_frames": len(states), "shard_ind": shard})


def shard_done(root: Path, shard: int) -> bool:
    """Tell whether a shard, raw or of tokens, was written completely."""
    try:
        num_frames = int(read_json(root / f"metadata/metadata_{shard}.json")["shard_num_frames"])
    except (DataError, KeyError):
        return False
    segments, states = root / f"segment_indices/segment_idx_{shard}.bin", root / f"robot_states/states_{shard}.bin"
    shown = any((root / f"videos/video_{shard}.{suffix}").exists() for suffix in ("mp4", "bin"))
    return shown and states.exists() and segments.exists() and segments.stat().st_size == 4 * num_frames


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
    """Write `metadata.json`, which turns the shards into a data set; `grid` is that of tokens.

    Raises:
        UsageError: a shard is missing.
    """
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
        content |= {
            "token_grid": [grid.latents_per_block, grid.height, grid.width],
            "vocab_size": grid.vocab_size,
            "block": grid.block,
            "temporal_stride": grid.temporal_stride,
        }
    write_json(root / "metadata.json", content | {"provenance": provenance})
