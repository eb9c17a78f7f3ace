"""Small data sets written by the tests, known in every value: 1X v2.0 tokens, video; LeRobot v2.1, v3.0."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int32, UInt8
from pyarrow import parquet
from torch import Tensor

from worldline.formats.onex.write import finish_shards, token_shard, write_raw_shard
from worldline.formats.states import ONEX_LAYOUT
from worldline.formats.video import encode, stream_frames
from worldline.schema import StateLayout, TokenGrid

SMALL_GRID = TokenGrid(height=4, width=4, vocab_size=64)
TWO_JOINTS = StateLayout(names=("elbow", "gripper"), kinds=("angle", "binary"))
CAMERA = "observation.images.head"


def decode(path: Path, frames: range, *, threads: int = 1) -> Tensor:
    """The frames of a video, as they are read."""
    return torch.cat(list(stream_frames(path, frames, threads=threads)))


def moving_picture(count: int, size: int = 32, shift: float = 0.0) -> UInt8[np.ndarray, "f h w 3"]:
    """Smooth colour waves whose brightness rises by 3 per frame, so that a frame tells its number."""
    y, x = np.mgrid[:size, :size] / size
    wave = np.stack([np.sin(2 * x + shift), np.cos(2 * y), np.sin(x + y)], axis=-1)
    rise = 40 + 3 * np.arange(count).reshape(-1, 1, 1, 1) % 180
    return np.clip(rise + 20 * wave, 0, 255).round().astype(np.uint8)


def ramp(count: int, dim: int, start: int = 0) -> Float32[np.ndarray, "f s"]:
    """States that tell their own row: row i holds (start + i) / 1000 plus the number of the dimension."""
    return ((start + np.arange(count)) / 1000)[:, None].astype(np.float32) + np.arange(dim, dtype=np.float32)


def token_ramp(blocks: int, grid: TokenGrid) -> Int32[np.ndarray, "n l h w"]:
    """Token grids in which every id of block n is n modulo the vocabulary."""
    shape = (blocks, grid.latents_per_block, grid.height, grid.width)
    return np.broadcast_to((np.arange(blocks) % grid.vocab_size).reshape(-1, 1, 1, 1), shape).astype(np.int32)


def write_tokens(root: Path, segments: Int32[np.ndarray, "f"], grid: TokenGrid = SMALL_GRID) -> Path:
    """One finished shard of tokens with the given segment numbers; the last partial block is present."""
    frames = len(segments)
    with token_shard(root, 0, states=ramp(frames, ONEX_LAYOUT.dim), segments=segments) as put:
        put(0, token_ramp(-(-frames // grid.block), grid))
    finish_shards(root, num_shards=1, num_images=frames, fps=30.0, layout=ONEX_LAYOUT, grid=grid, provenance={})
    return root


def write_raw(root: Path, lengths: tuple[int, ...] = (40, 1, 30), size: int = 32) -> Path:
    """One finished shard of video with segments of the given lengths."""
    segments = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    frames = len(segments)
    write_raw_shard(root, 0, frames=moving_picture(frames, size), states=ramp(frames, 2), segments=segments, fps=30.0)
    finish_shards(root, num_shards=1, num_images=frames, fps=30.0, layout=TWO_JOINTS, provenance={})
    return root


def flatten(root: Path) -> Path:
    """Turn a nested 1X folder into the flat layout of the challenge's validation set."""
    for path in sorted(root.glob("*/*")):
        path.rename(root / path.name)
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        folder.rmdir()
    return root


def write_lerobot(root: Path, version: str, lengths: tuple[int, ...] = (40, 50, 36), names: object = None) -> Path:
    """A LeRobot data set of two state dimensions; state = ramp from 100 * episode, action = state + 0.5."""
    v3 = version == "v3.0"
    feature = {"dtype": "float32", "shape": [2], "names": names}
    video = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channel"]}
    info = {
        "codebase_version": version,
        "fps": 30,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {"observation.state": feature, "action": feature, CAMERA: video},
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    tables = [_table(episode, length) for episode, length in enumerate(lengths)]
    films = [moving_picture(length, shift=float(episode)) for episode, length in enumerate(lengths)]
    (_write_v3 if v3 else _write_v2)(root, tables, films)
    return root


def _table(episode: int, length: int) -> pa.Table:
    states = ramp(length, 2, start=100 * episode)
    return pa.table(
        {
            "observation.state": pa.array(states.tolist(), pa.list_(pa.float32())),
            "action": pa.FixedSizeListArray.from_arrays(pa.array((states + 0.5).ravel()), 2),
            "episode_index": np.full(length, episode),
            "frame_index": np.arange(length),
        }
    )


def _write_v2(root: Path, tables: list[pa.Table], films: list[np.ndarray]) -> None:
    data, videos = root / "data/chunk-000", root / "videos/chunk-000" / CAMERA
    data.mkdir(parents=True)
    videos.mkdir(parents=True)
    lines = []
    for episode, (table, film) in enumerate(zip(tables, films, strict=True)):
        parquet.write_table(table, data / f"episode_{episode:06d}.parquet")
        encode(videos / f"episode_{episode:06d}.mp4", film, fps=30.0)
        lines.append(json.dumps({"episode_index": episode, "length": len(film)}))
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")


def _write_v3(root: Path, tables: list[pa.Table], films: list[np.ndarray]) -> None:
    """The first two episodes share file 0, the others share file 1; tables and videos alike."""
    files = [0 if episode < 2 else 1 for episode in range(len(films))]
    starts = [sum(len(films[j]) for j in range(i) if files[j] == files[i]) for i in range(len(films))]
    firsts = np.cumsum([0, *(len(film) for film in films)])
    data, videos, meta = (
        root / "data/chunk-000",
        root / f"videos/{CAMERA}/chunk-000",
        root / "meta/episodes/chunk-000",
    )
    for folder in (data, videos, meta):
        folder.mkdir(parents=True)
    for number in set(files):
        members = [i for i, file in enumerate(files) if file == number]
        parquet.write_table(pa.concat_tables([tables[i] for i in members]), data / f"file-{number:03d}.parquet")
        encode(videos / f"file-{number:03d}.mp4", np.concatenate([films[i] for i in members]), fps=30.0)
    rows = {
        "episode_index": list(range(len(films))),
        "length": [len(film) for film in films],
        "data/chunk_index": [0] * len(films),
        "data/file_index": files,
        "dataset_from_index": firsts[:-1].tolist(),
        "dataset_to_index": firsts[1:].tolist(),
        f"videos/{CAMERA}/chunk_index": [0] * len(films),
        f"videos/{CAMERA}/file_index": files,
        f"videos/{CAMERA}/from_timestamp": [start / 30 for start in starts],
        f"videos/{CAMERA}/to_timestamp": [(start + len(film)) / 30 for start, film in zip(starts, films, strict=True)],
    }
    parquet.write_table(pa.table(rows), meta / "file-000.parquet")
