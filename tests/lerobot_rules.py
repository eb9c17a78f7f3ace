"""Checks a folder against LeRobot's published rules, and knows nothing of worldline: a second opinion on its exports.

Written from huggingface/lerobot alone: docs/source/lerobot-dataset-v3.mdx for v3.0, and what release 0.3.3 loads for
v2.1. Only json, pyarrow and PyAV.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from pyarrow import parquet

DEFAULTS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
DEFAULTS |= {"task_index": "int64"}
TOLERANCE = 1e-4  # seconds, of LeRobotDataset


def faults(root: Path) -> list[str]:
    """All that breaks a rule; empty for a sound data set."""
    info = json.loads((root / "meta/info.json").read_text())
    version = info["codebase_version"]
    episodes = _episodes_v21(root, info) if version == "v2.1" else _episodes_v30(root, info)
    return [*_of_info(info, episodes), *_of_stats(root, info, episodes), *_of_data(root, info, episodes)]


def _of_info(info: dict[str, Any], episodes: list[dict[str, Any]]) -> Iterator[str]:
    wanted = {"total_episodes": len(episodes), "total_frames": sum(row["length"] for row in episodes)}
    if info["codebase_version"] == "v2.1":
        wanted |= {"total_chunks": -(-len(episodes) // info["chunks_size"])}
        wanted |= {"total_videos": len(episodes) * len(_cameras(info))}
    else:
        for key in ("data_files_size_in_mb", "video_files_size_in_mb"):
            if not info.get(key, 0) > 0:
                yield f"info: no {key}"
    for key, value in wanted.items():
        if info.get(key) != value:
            yield f"info: {key} is {info.get(key)}, counted {value}"
    if info["splits"] != {"train": f"0:{len(episodes)}"}:
        yield f"info: splits {info['splits']}"
    if not info["fps"] > 0 or "robot_type" not in info:
        yield "info: fps or robot_type"
    for name, feature in info["features"].items():
        if "/" in name or not {"dtype", "shape", "names"} <= feature.keys():
            yield f"info: feature {name}"
        names = feature["names"]
        if feature["dtype"] == "float32" and names is not None and len(names) != feature["shape"][0]:
            yield f"info: {name} has {len(names)} names for {feature['shape']}"
    for name, dtype in DEFAULTS.items():
        if info["features"].get(name) != {"dtype": dtype, "shape": [1], "names": None}:
            yield f"info: feature {name} is not the default"
    if [row["episode_index"] for row in episodes] != list(range(len(episodes))):
        yield "episodes: not numbered from 0 in order"


def _cameras(info: dict[str, Any]) -> list[str]:
    return [name for name, feature in info["features"].items() if feature["dtype"] == "video"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _episodes_v21(root: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    rows, first = _lines(root / "meta/episodes.jsonl"), 0
    tasks = {row["task"]: row["task_index"] for row in _lines(root / "meta/tasks.jsonl")}
    assert len(tasks) == info["total_tasks"]
    assert sorted(tasks.values()) == list(range(len(tasks)))
    stats = {row["episode_index"]: row["stats"] for row in _lines(root / "meta/episodes_stats.jsonl")}
    for row in rows:
        where = {"episode_chunk": row["episode_index"] // info["chunks_size"], "episode_index": row["episode_index"]}
        row["data"] = root / info["data_path"].format(**where)
        row["videos"] = {key: (root / info["video_path"].format(video_key=key, **where), 0.0) for key in _cameras(info)}
        row |= {"first": first, "task_indices": [tasks[task] for task in row["tasks"]]}
        row["stats"] = stats[row["episode_index"]]
        first += row["length"]
    return rows


def _episodes_v30(root: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    tasks_table = parquet.read_table(root / "meta/tasks.parquet")
    known = json.loads(tasks_table.schema.metadata[b"pandas"])  # LeRobot reads it by pandas, tasks are its index
    tasks = dict(zip(*(tasks_table[name].to_pylist() for name in (*known["index_columns"], "task_index")), strict=True))
    assert len(tasks) == info["total_tasks"]
    rows = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            place = f"chunk-{row['meta/episodes/chunk_index']:03d}/file-{row['meta/episodes/file_index']:03d}.parquet"
            assert path == root / "meta/episodes" / place
            at = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            row["data"], row["videos"] = root / info["data_path"].format(**at), {}
            for key in _cameras(info):
                at = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
                begin, end = row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"]
                row["spans"] = [*row.get("spans", ()), end - begin]
                row["videos"][key] = (root / info["video_path"].format(video_key=key, **at), begin)
            assert row["dataset_to_index"] - row["dataset_from_index"] == row["length"]
            row |= {"first": row["dataset_from_index"], "task_indices": [tasks[task] for task in row["tasks"]]}
            flat = {name: value for name, value in row.items() if name.startswith("stats/")}
            row["stats"] = {}
            for name, value in flat.items():
                _, key, kind = name.split("/")
                row["stats"].setdefault(key, {})[kind] = value
            rows.append(row)
    return rows


def _of_stats(root: Path, info: dict[str, Any], episodes: list[dict[str, Any]]) -> Iterator[str]:
    parts = [(f"episode {row['episode_index']}", row["stats"], row["length"]) for row in episodes]
    kinds = {"min", "max", "mean", "std", "count"}
    if info["codebase_version"] == "v3.0":
        kinds |= {"q01", "q10", "q50", "q90", "q99"}
        parts.append(("stats.json", json.loads((root / "meta/stats.json").read_text()), info["total_frames"]))
    for what, stats, count in parts:
        if stats.keys() != info["features"].keys():
            yield f"{what}: statistics of {sorted(stats)}"
        for name, feature in info["features"].items():
            shape = (3, 1, 1) if feature["dtype"] == "video" else tuple(feature["shape"])
            found = {kind: np.array(value) for kind, value in stats.get(name, {}).items()}
            if found.keys() != kinds or any(found[kind].shape != shape for kind in kinds - {"count"}):
                yield f"{what}: {name} has { ({kind: value.shape for kind, value in found.items()}) }"
            elif found["count"].tolist() != [count] or not all(np.isfinite(value).all() for value in found.values()):
                yield f"{what}: {name} counts {found['count']}, or is not finite"
            elif (found["min"] > found["mean"] + 1e-6).any() or (found["mean"] > found["max"] + 1e-6).any():
                yield f"{what}: {name} has no mean between its ends"


def _of_data(root: Path, info: dict[str, Any], episodes: list[dict[str, Any]]) -> Iterator[str]:
    listed = {row["data"] for row in episodes}
    if set((root / "data").rglob("*.parquet")) != listed:
        yield "data: files that no episode names, or the reverse"
    tables = {path: parquet.read_table(path) for path in sorted(listed)}
    shown: dict[Path, np.ndarray] = {}
    for key, path in {(key, path) for row in episodes for key, (path, _) in row["videos"].items()}:
        shown[path], size = _times(path)
        if [*size, 3] != info["features"][key]["shape"]:
            yield f"{path.name}: frames of {size}"
    types = {name: f["dtype"] for name, f in info["features"].items() if f["dtype"] != "video"}
    for path, table in tables.items():
        for name, dtype in types.items():
            shape, found = info["features"][name]["shape"], str(table.schema.field(name).type)
            dtype = {"float32": "float", "bool": "bool"}.get(dtype, dtype)
            if found != dtype and not (found.endswith(f"{dtype}>[{shape[0]}]") or found.endswith(f": {dtype}>")):
                yield f"{path.name}: {name} is {found}"
        if sorted(table.column_names) != sorted(types):
            yield f"{path.name}: columns {table.column_names}"
    taken = dict.fromkeys(shown, 0)
    for row in episodes:
        table = tables[row["data"]]
        number, length = row["episode_index"], row["length"]
        own = {name: np.array(table[name].to_pylist()) for name in (*DEFAULTS, *types)}
        rows = np.flatnonzero(own["episode_index"] == number)
        what = f"episode {number}"
        if len(rows) != length or (np.diff(rows) != 1).any():
            yield f"{what}: {len(rows)} rows for a length of {length}"
            continue
        if (own["index"][rows] != row["first"] + np.arange(length)).any():
            yield f"{what}: index"
        if (own["frame_index"][rows] != np.arange(length)).any():
            yield f"{what}: frame_index"
        if not set(own["task_index"][rows].tolist()) <= set(row["task_indices"]):
            yield f"{what}: task_index"
        if any(abs(span - length / info["fps"]) > TOLERANCE for span in row.get("spans", ())):
            yield f"{what}: its span in a video is not that of its frames"
        times = own["timestamp"][rows]
        if np.abs(times - np.arange(length) / info["fps"]).max() > TOLERANCE:
            yield f"{what}: timestamps are not frame_index / fps"
        for key, (path, begin) in row["videos"].items():
            taken[path] += length
            nearest = np.abs(shown[path][None] - (begin + times)[:, None]).min(axis=1)
            if nearest.max() > TOLERANCE:
                yield f"{what}: no frame of {key} within the tolerance ({nearest.max():.5f} s)"
    for path, count in taken.items():
        if count != len(shown[path]):
            yield f"{path.name}: {len(shown[path])} frames for {count} rows"


def _times(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """When each decoded frame of a video is shown, and their height and width."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context is not None
        assert stream.codec_context.pix_fmt == "yuv420p"
        times = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
        return np.array(times), (stream.codec_context.height, stream.codec_context.width)
