"""Random damage to small data sets: any file may hold anything. Every mutation is a function of its seed."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from condition_builders import write_images, write_latents
from data_builders import moving_picture, ramp, write_lerobot, write_raw, write_tokens
from pyarrow import parquet

from worldline.formats.video import encode

LENGTHS = (36, 20, 12)
SETS = ("lerobot-v2.1", "lerobot-v3.0", "lerobot-v2.1 images", "1x-raw", "1x-tokens", "1x-test", "latents")
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 10**6, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "30",
        "\0",
        "../x",
        "/etc",
        "{",
        "{}",
        "{episode_index.x}",
        "{episode_index!r:>99}",
        "\ud800",
        "é" * 300,
    ),
    *([], [1], [[2]], [None], [-1, 3], ["a", "a"], {}, {"a": 1}, {"a": {"b": [None]}}),
)


def build(root: Path) -> dict[str, Path]:
    """The sound sets that are damaged, one of each kind."""
    segments = np.repeat(np.arange(3, dtype=np.int32), [51, 1, 40])
    names = {"motors": ["elbow", "gripper"]}
    sets = {
        "lerobot-v2.1": write_lerobot(root / "v21", "v2.1", LENGTHS, names),
        "lerobot-v3.0": write_lerobot(root / "v30", "v3.0", LENGTHS, names),
        "lerobot-v2.1 images": write_images(root / "images"),
        "1x-raw": write_raw(root / "raw", LENGTHS),
        "1x-test": _test_samples(root / "test"),
        "latents": write_latents(root / "latents"),
        "1x-tokens": write_tokens(root / "tokens", segments),
    }
    stats = {"observation.state": {"min": [0, 1], "max": [0.211, 1.211]}}
    for kind in SETS[:2]:
        (sets[kind] / "meta/stats.json").write_text(json.dumps(stats))
        (sets[kind] / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "do it"}\n')
    return sets


def _test_samples(root: Path) -> Path:
    for folder in ("videos", "robot_states"):
        (root / folder).mkdir(parents=True)
    for i in range(2):
        encode(root / f"videos/video_{i}.mp4", moving_picture(17), fps=30.0)
        ramp(77, 25, start=100 * i).tofile(root / f"robot_states/states_{i}.bin")
    return root


def mutate(root: Path, rng: np.random.Generator) -> str:
    """Damage one file below `root` in place; say how, for messages."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    whole = partial(_bytes, others=[other for other in files if other != path])
    of_kind = {".json": _json, ".jsonl": _jsonl, ".parquet": _table, ".mp4": _video, ".bin": _numbers, ".npy": whole}[
        path.suffix
    ]
    how: Callable[[Path, np.random.Generator], str] = of_kind if rng.random() < 0.6 else whole
    return f"{path.relative_to(root)}: {how(path, rng)}"


def _bytes(path: Path, rng: np.random.Generator, *, others: list[Path]) -> str:
    data = path.read_bytes()
    at, length = int(rng.integers(len(data) + 1)), int(2 ** rng.uniform(0, 11))
    noise = rng.integers(0, 256, length, np.uint8).tobytes()
    ways = {
        "overwritten": data[:at] + noise + data[at + length :],
        "noise inserted": data[:at] + noise + data[at:],
        "a piece cut out": data[:at] + data[at + length :],
        "cut short": data[:at],
        "emptied": b"",
        "zeros": bytes(len(data)),
        "one bit": data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        if at < len(data)
        else b"",
        "noise": noise,
        "a web page": b"<!DOCTYPE html><html><body>401</body></html>",
        "a Git LFS pointer": _POINTER,
        "no UTF-8": data[:at] + b"\xff\xfe\xc3" + data[at:],
        "twice": data + data,
    }
    how = str(rng.choice([*ways, "removed", "a folder", "another file", "a link to nothing"]))
    if how in ways:
        path.write_bytes(ways[how])
        return how
    other = others[rng.integers(len(others))].read_bytes() if how == "another file" and others else b""
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a link to nothing":
        path.symlink_to(path.parent / "nothing")
    elif how == "another file":
        path.write_bytes(other)
    return how


def _json(path: Path, rng: np.random.Generator) -> str:
    content, how = _changed(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
    return how


def _jsonl(path: Path, rng: np.random.Generator) -> str:
    lines = path.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    if rng.random() < 0.2:
        lines.insert(0, lines[at])
        how = "a line twice"
    else:
        content, how = _changed(json.loads(lines[at]), rng)
        lines[at] = json.dumps(content)
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return how


def _changed(content: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Replace or remove something at a random place of a JSON value."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(content)
    value = _VALUES[rng.integers(len(_VALUES))]
    if not places or rng.random() < 0.05:
        return value, f"all of it {value!r}"
    node, key = places[rng.integers(len(places))]
    if rng.random() < 0.2:
        del node[key]
        return content, f"no {key!r}"
    node[key] = value
    return content, f"{key!r} is {value!r}"


def _table(path: Path, rng: np.random.Generator) -> str:
    table = parquet.read_table(path)
    rows, name = len(table), str(rng.choice(table.column_names))
    at = table.column_names.index(name)
    column, half = table[name].combine_chunks(), rows // 2
    columns: dict[str, Any] = {
        "text": ["x"] * rows,
        "nothing": pa.nulls(rows),
        "some nothing": pa.array([None if i == half else v for i, v in enumerate(column.to_pylist())], column.type),
        "uneven lists": pa.array([[1.0] * (i % 3) for i in range(rows)], pa.large_list(pa.float64())),
        "lists of text": [["a", "b"]] * rows,
        "deep lists": [[[[1.0]], [[2.0]]]] * rows,
        "records": [{"a": 1.0, "b": 2.0}] * rows,
        "truth": [True] * rows,
        "times": pa.array([10**15] * rows, pa.timestamp("us")),
        "bytes": [b"\x89PNG"] * rows,
        "huge": pa.array([2**63] * rows, pa.uint64()),
        "huge floats": [1e300] * rows,
        "negative": [-5] * rows,
        "no numbers": [float("nan")] * rows,
        "empty lists": pa.array([[]] * rows, pa.list_(pa.float32())),
        "one kept": pa.array(["x"] * rows).dictionary_encode(),
    }
    how = str(rng.choice([*columns, "dropped", "fewer rows", "no rows", "rows reversed", "twice", "renamed"]))
    if how in columns:
        values = columns[how]
        table = table.set_column(at, name, values if isinstance(values, pa.Array) else pa.array(values))
    elif how == "dropped":
        table = table.drop_columns([name])
    elif how == "twice":
        table = table.append_column(name, table[name])
    elif how == "renamed":
        table = table.rename_columns([f"{n}.x" if n == name else n for n in table.column_names])
    else:
        table = (
            table.take(np.arange(rows)[::-1])
            if how == "rows reversed"
            else table.slice(0, half * (how == "fewer rows"))
        )
    parquet.write_table(table, path)
    return f"{name}: {how}"


def _video(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    how = str(rng.choice(["no frame decodes", "another rate", "another size", "fewer frames", "more frames"]))
    if how == "no frame decodes":
        at, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
        if end < at:
            at, end = data.index(b"mdat") + 4, len(data)
        path.write_bytes(data[:at] + bytes(end - at) + data[end:])
    else:
        film = moving_picture({"fewer frames": 7, "more frames": 130}.get(how, 36), 48 if how == "another size" else 32)
        encode(path, film, fps={"another rate": 12.5}.get(how, 30.0))
    return how


def _numbers(path: Path, rng: np.random.Generator) -> str:
    values = np.fromfile(path, np.int32)
    value = int(rng.choice([-1, 2**31 - 1, 0x7FC00000, 0x7F800000, 64, -(2**31)]))
    values[rng.integers(len(values), size=1 + len(values) // 20)] = value
    if rng.random() < 0.3:
        values = values[: -int(rng.integers(1, 30))]
    values.tofile(path)
    return f"values of {value}, {len(values)} in all"


def copy(source: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(source, to)
    return to
