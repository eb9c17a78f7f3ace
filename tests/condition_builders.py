"""LeRobot data sets as people really have them. Every frame shows its number, so a test knows which it was given."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8
from pyarrow import parquet

CAMERA = "observation.images.head"
_BIT = 4
"""Pixels; eight blocks along the top are the bits of a frame's number."""


def film(count: int, first: int = 0, height: int = 32, width: int = 32) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames numbered `first`, `first + 1`, ..., modulo 256."""
    frames = np.full((count, height, width, 3), 90, np.uint8)
    for i, frame in enumerate(frames):
        for bit in range(8):
            frame[:8, bit * _BIT : (bit + 1) * _BIT] = 235 if (first + i) >> (7 - bit) & 1 else 20
    return frames


def numbers(frames: Any) -> list[int]:
    """The numbers that frames `t 3 h w` show."""
    bits = np.asarray(frames)[:, :, 2:6, :32].astype(float).reshape(-1, 3, 4, 8, _BIT)[..., 1:3].mean(axis=(1, 2, 4))
    return [int("".join("1" if bit > 128 else "0" for bit in frame), 2) for frame in bits]


def write_film(
    path: Path,
    frames: UInt8[np.ndarray, "f h w 3"],
    *,
    fps: float = 30,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    b_frames: int = 0,
) -> None:
    """Encode frames at a rate, or shown at given seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tick = Fraction(1, 30_000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = tick
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, b_frames
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round((i / fps if times is None else times[i]) * 30_000), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    if codec == "libsvtav1":  # as root it takes the highest real-time priority for this thread, and leaves it there
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def encoded(image: UInt8[np.ndarray, "h w 3"], codec: str = "png") -> bytes:
    """A PNG or JPEG (`mjpeg`)."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = image.shape[:2]
    context.pix_fmt, context.time_base = {"png": "rgb24", "mjpeg": "yuvj444p"}[codec], Fraction(1, 30)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=context.pix_fmt)
    return b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None)))


def states(count: int, first: int) -> Float32[np.ndarray, "f 2"]:
    """Rows that tell their own number."""
    return np.stack([(first + np.arange(count)) / 1000, np.arange(count) // 7 % 2], axis=1).astype(np.float32)


def table(episode: int, count: int, first: int, times: Sequence[float], **columns: Any) -> pa.Table:
    """A table as LeRobot writes it; `columns` replace some of it, None drops one (`state` is observation.state)."""
    made: dict[str, Any] = {
        "observation.state": pa.array(states(count, first).tolist(), pa.list_(pa.float32())),
        "action": pa.array(states(count, first).tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array(np.asarray(times, np.float32)),
        "frame_index": pa.array(np.arange(count, dtype=np.int64)),
        "episode_index": pa.array(np.full(count, episode, np.int64)),
    }
    made |= {"observation.state" if name == "state" else name: values for name, values in columns.items()}
    return pa.table({name: values for name, values in made.items() if values is not None})


def write(
    root: Path,
    version: str = "v2.1",
    lengths: Sequence[int] = (40, 36),
    *,
    fps: float = 30,
    columns: Callable[[int, int, int], Mapping[str, Any]] = lambda episode, count, first: {},
    info: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
    videos: bool = True,
    edit: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
    file_of: Callable[[int], int] = lambda episode: 0,
) -> Path:
    """Write a data set. Frame and row i of an episode have the number `first + i`, `first` counted over the set.

    Args:
        columns: what replaces columns of an episode's table, from its number, length and first number.
        info: what replaces keys of info.json; `features` replaces features.
        edit: changes the listed episodes in place.
        file_of: the number of the table that holds an episode (v3.0).
    """
    firsts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    tables = []
    for episode, count in enumerate(lengths):
        given = dict(columns(episode, count, firsts[episode]))
        times = given.pop("times", np.arange(count) / fps)
        tables.append(table(episode, count, firsts[episode], times, **given))
    state = {"dtype": "float32", "shape": [2], "names": ["elbow", "gripper"]}
    camera = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
    content = {
        "codebase_version": version,
        "fps": fps,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        **_PATHS[version],
        "features": {"observation.state": state, "action": state, CAMERA: camera, **(features or {})},
    }
    content["features"] = {key: feature for key, feature in content["features"].items() if feature is not None}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(content | dict(info or {})))
    (_write_v3 if version == "v3.0" else _write_v2)(root, lengths, firsts, tables, fps, videos, edit, file_of)
    return root


def write_images(root: Path, lengths: Sequence[int] = (36, 5)) -> Path:
    """A data set of PNGs in its tables."""
    return write(
        root,
        lengths=lengths,
        columns=lambda _, count, first: {
            CAMERA: pa.array([{"bytes": encoded(image), "path": None} for image in film(count, first)])
        },
        features={CAMERA: {"dtype": "image", "shape": [32, 32, 3], "names": None}},
        info={"video_path": None},
        videos=False,
    )


def write_latents(root: Path) -> Path:
    """Windows of five frames, one in every two frames of an episode of eleven: four of two latents 4x2x2."""
    claim = {"episodes": ["e"], "pattern": {"window": 5}, "window_stride": 2, "tokenizer": "x"}
    metadata = {
        "fps": 30.0,
        "state_names": ["a", "b"],
        "state_kinds": ["angle", "binary"],
        "lengths": [11],
        "names": ["e"],
        "left_out": [],
        "latent_grid": {"channels": 4, "height": 2, "width": 2, "temporal_stride": 4},
        "contract": {},
    }
    root.mkdir(parents=True)
    (root / "encode.json").write_text(json.dumps(claim))
    (root / "metadata.json").write_text(json.dumps(metadata))
    np.save(root / "latents_0.npy", np.zeros((4, 2, 4, 2, 2), np.float16))
    np.save(root / "states_0.npy", np.zeros((11, 2), np.float32))
    return root


_PATHS = {
    "v2.1": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    "v3.0": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}


def video_of(root: Path, episode: int) -> Path:
    """An episode's video (v2.1)."""
    return root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"


def table_of(root: Path, episode: int) -> Path:
    """An episode's table (v2.1)."""
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def _write_v2(root, lengths, firsts, tables, fps, videos, edit, _file_of) -> None:
    rows = [{"episode_index": episode, "tasks": ["do it"], "length": count} for episode, count in enumerate(lengths)]
    edit(rows)
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table_of(root, 0).parent.mkdir(parents=True)
    for episode, count in enumerate(lengths):
        parquet.write_table(tables[episode], table_of(root, episode))
        if videos and count:
            write_film(video_of(root, episode), film(count, firsts[episode]), fps=fps)


def _write_v3(root, lengths, firsts, tables, fps, videos, edit, file_of) -> None:
    video = f"videos/{CAMERA}"
    rows = [
        {
            "episode_index": episode,
            "length": count,
            "data/chunk_index": 0,
            "data/file_index": file_of(episode),
            "dataset_from_index": firsts[episode],
            "dataset_to_index": firsts[episode + 1],
            f"{video}/chunk_index": 0,
            f"{video}/file_index": 0,
            f"{video}/from_timestamp": firsts[episode] / fps,
            f"{video}/to_timestamp": firsts[episode + 1] / fps,
        }
        for episode, count in enumerate(lengths)
    ]
    edit(rows)
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    for number in {file_of(episode) for episode in range(len(lengths))}:
        members = [tables[episode] for episode in range(len(lengths)) if file_of(episode) == number]
        parquet.write_table(pa.concat_tables(members), root / f"data/chunk-000/file-{number:03d}.parquet")
    if videos:
        write_film(root / f"{video}/chunk-000/file-000.mp4", film(sum(lengths)), fps=fps)
