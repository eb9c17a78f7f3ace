"""Write the 1X v2.0 layout (nested, as in its training set): raw video or tokens.

Knows how bytes lie, not why.

Every file is written under a temporary name and moved into place; `metadata/metadata_{r}.json` comes last and
makes shard r done; `metadata.json` comes after all shards and makes the folder a data set. A folder without
it is unfinished, and readers say so.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    crf: int = 18,
    gop: int = 16,
) -> None:
    """Write one shard of video, states and segment numbers. The same input gives the same bytes.

    Frames may come one by one, so that an episode need not be in memory.

    Raises:
        UsageError: an odd or empty image size, which H.264 in yuv420p cannot hold.
    """
    _make_folders(root)
    encode(root / f"videos/video_{shard}.mp4", frames, fps=fps, crf=crf, gop=gop)
    _write_rows(root, shard, states, segments)


def write_token_shard(
    root: Path,
    shard: int,
    *,
    tokens: Int32[np.ndarray, "n l h w"],
    states: Float32[np.ndarray, "f s"],
    segments: Int32[np.ndarray, "f"],
    fps: float,
) -> None:
    """Write one shard of token blocks, states and segment numbers.

    `n` blocks cover the frames from the shard's first on; a last partial block may be present or left away,
    readers drop it. `fps` is the rate of `states`; it is stored by `finish_tokens`.

    Raises:
        UsageError: there are more blocks than frames, or the rate is not positive.
    """
    if fps <= 0 or len(tokens) > len(states):
        raise UsageError(f"{root}: {len(tokens)} blocks for {len(states)} frames at {fps} Hz cannot be right")
    with token_shard(root, shard, states=states, segments=segments) as put:
        put(0, tokens)


@contextmanager
def token_shard(
    root: Path, shard: int, *, states: Float32[np.ndarray, "f s"], segments: Int32[np.ndarray, "f"]
) -> Iterator[Callable[[int, Int32[np.ndarray, "n l h w"]], None]]:
    """Write one shard whose tokens come in pieces: what is given takes them, and the number of their first block.

    Pieces may come in any order; together they are all blocks. The shard is done when the block succeeds.
    """
    _make_folders(root)
    with atomic(root / f"videos/video_{shard}.bin") as temporary, temporary.open("wb") as file:

        def put(first: int, tokens: Int32[np.ndarray, "n l h w"]) -> None:
            file.seek(first * tokens[0:1].nbytes)
            file.write(np.ascontiguousarray(tokens).data)

        yield put
    _write_rows(root, shard, states, segments)


def raw_shard_done(root: Path, shard: int) -> bool:
    """Tell whether shard `shard` of a raw folder was written completely."""
    return _done(root, shard, "mp4")


def token_shard_done(root: Path, shard: int) -> bool:
    """Tell whether shard `shard` of a token folder was written completely."""
    return _done(root, shard, "bin")


def finish_raw(
    root: Path,
    *,
    num_shards: int,
    num_images: int,
    fps: float,
    layout: StateLayout,
    provenance: dict[str, object],
) -> None:
    """Write `metadata.json`, which turns the shards into a data set.

    Raises `UsageError` where a shard is missing.
    """
    _finish(root, "mp4", _metadata(num_shards, num_images, fps, layout), provenance)


def finish_tokens(
    root: Path,
    *,
    num_shards: int,
    num_images: int,
    fps: float,
    layout: StateLayout,
    grid: TokenGrid,
    provenance: dict[str, object],
) -> None:
    """Write `metadata.json` with the token grid. Raises `UsageError` where a shard is missing."""
    tokens = {
        "token_grid": [grid.latents_per_block, grid.height, grid.width],
        "vocab_size": grid.vocab_size,
        "block": grid.block,
        "temporal_stride": grid.temporal_stride,
    }
    _finish(root, "bin", _metadata(num_shards, num_images, fps, layout) | tokens, provenance)


def _make_folders(root: Path) -> None:
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)


def _write_rows(root: Path, shard: int, states: Float32[np.ndarray, "f s"], segments: Int32[np.ndarray, "f"]) -> None:
    write_array(root / f"robot_states/states_{shard}.bin", states)
    write_array(root / f"segment_indices/segment_idx_{shard}.bin", segments)
    content = {"shard_num_frames": len(states), "shard_ind": shard}
    write_json(root / f"metadata/metadata_{shard}.json", content)


def _done(root: Path, shard: int, suffix: str) -> bool:
    marker = root / f"metadata/metadata_{shard}.json"
    if not marker.exists():
        return False
    try:
        num_frames = int(read_json(marker)["shard_num_frames"])
    except (DataError, KeyError):
        return False
    segments = root / f"segment_indices/segment_idx_{shard}.bin"
    rest = (root / f"videos/video_{shard}.{suffix}", root / f"robot_states/states_{shard}.bin")
    return segments.exists() and segments.stat().st_size == 4 * num_frames and all(p.exists() for p in rest)


def _metadata(num_shards: int, num_images: int, fps: float, layout: StateLayout) -> dict[str, Any]:
    return {
        "num_shards": num_shards,
        "query": None,
        "hz": int(fps) if float(fps).is_integer() else fps,
        "num_images": num_images,
        "state_names": list(layout.names),
        "state_kinds": list(layout.kinds),
    }


def _finish(root: Path, suffix: str, content: dict[str, Any], provenance: dict[str, object]) -> None:
    undone = [shard for shard in range(content["num_shards"]) if not _done(root, shard, suffix)]
    if undone:
        raise UsageError(f"{root}: cannot finish, {len(undone)} shards are not written, the first is {undone[0]}")
    write_json(root / "metadata.json", content | {"provenance": provenance})
