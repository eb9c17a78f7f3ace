"""Forecasts on disk, in arrays and pictures that other programs read, and their reader.

    OUT/forecast.json                        what was forecast and how; written last, so where it is, all is there
    OUT/forecast.unfinished.json             the same, until then
    OUT/NAME.npz                             --format npz: the arrays below
    OUT/NAME/future_K/frame_TTT.png          --format png: future K, frame TTT counted from the first of the context
    OUT/NAME/tokens.npz                      --format png, worlds over tokens: the arrays below without frames
    OUT/NAME.mp4                             --format mp4: to be looked at, with the context before it

| array         | dtype   | shape     | what                                                                       |
|---------------|---------|-----------|----------------------------------------------------------------------------|
| frames        | uint8   | k t h w 3 | predicted frames of each future, RGB                                       |
| times         | int32   | t         | their positions, counted from the first frame of the context               |
| tokens        | int32   | k l h w   | predicted token grids of each future                                       |
| top_ids       | int32   | l h w n   | of future 0: the n likeliest tokens of each place, likeliest first (n 500) |
| top_log_probs | float32 | l h w n   | their log-probabilities in nats, at temperature 1 over the whole vocabulary|

A sample of the challenge's test set is named as its file, `sample_12`; any other clip by its number, `clip_00012`.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from worldline.files import atomic, read_json, write_json
from worldline.rundir import from_json, new_folder, to_json
from worldline.schema import DataError, Forecast, UsageError

INDEX, UNFINISHED = "forecast.json", "forecast.unfinished.json"
TOKEN_ARRAYS = {"tokens": "int32", "top_ids": "int32", "top_log_probs": "float32"}
Layout = Literal["mp4", "png", "npz"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One forecast clip and where it comes from."""

    name: str
    clip: int
    """Number among the clips of the data."""
    episode: str
    start: int
    """Its first frame, counted from that of the episode."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `forecast.json` says."""

    layout: Layout
    run: str
    checkpoint: str
    data: str
    fps: float
    """Video frames per second, between which `times` count."""
    times: tuple[int, ...]
    num_samples: int
    seed: int
    settings: dict[str, str | int | float | bool]
    samples: tuple[Sample, ...]
    made_from: str = ""
    """Hash of all that decides what the files hold; empty where that is not known."""
    format: Literal[1] = 1


def save_npz(path: Path, forecast: Forecast, clip: int) -> Path:
    """Write all arrays of one clip's forecast into one file."""
    arrays = _token_arrays(forecast, clip)
    if forecast.frames is not None:
        arrays |= {"frames": _frames(forecast, clip), "times": np.array(forecast.times, np.int32)}
    return _write(path, arrays)


def save_png(folder: Path, forecast: Forecast, clip: int) -> Path:
    """Write the frames of one clip's forecast as pictures, and its tokens, if it has any, beside them."""
    with new_folder(folder) as temporary:
        for number, future in enumerate(_frames(forecast, clip)):
            (temporary / f"future_{number}").mkdir()
            for time, frame in zip(forecast.times, future, strict=True):
                Image.fromarray(frame).save(temporary / _png(number, time))
        if forecast.tokens is not None:
            _write(temporary / "tokens.npz", _token_arrays(forecast, clip))
    return folder


def begin_index(folder: Path, index: Index, files: Sequence[Path]) -> set[Path]:
    """Say what is going to be forecast; give those of its files that are there already. Others of their names go."""
    said, names = to_json(Index, index), {f".{path.name}" for path in files}
    gone = [path for path in folder.glob(".*.*") if path.suffix in (".tmp", ".old") and _stem(path) in names]
    if not any(_says(folder / name, said) for name in (INDEX, UNFINISHED)):
        gone = [folder / INDEX, folder / UNFINISHED, *gone, *files]  # first what says that the others are sound
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(folder / UNFINISHED, said)
    (folder / INDEX).unlink(missing_ok=True)
    return {path for path in files if path.exists()}


def _stem(path: Path) -> str:
    """What a killed writer's `.NAME.PID.tmp` was to become, with the dot."""
    return path.name.rsplit(".", 2)[0]


def _says(path: Path, said: dict[str, Any]) -> bool:
    try:
        return path.exists() and read_json(path) == said
    except DataError:  # damaged: what it said is not known
        return False


def finish_index(folder: Path) -> None:
    """Say that all of it is there."""
    os.replace(folder / UNFINISHED, folder / INDEX)


def read_forecasts(folder: Path) -> dict[str, Forecast]:
    """Read every sample a forecast wrote, each as a batch of one, and check that its arrays are what was promised.

    Raises:
        DataError: a file is missing, damaged or of another shape, type or range; names it.
        UsageError: the forecast was written as videos.
    """
    index: Index = from_json(Index, read_json(folder / INDEX), folder / INDEX)
    if index.layout == "mp4":
        raise UsageError(f"{folder} holds videos to be looked at; forecast with --format npz or png to read frames")
    read = _read_npz if index.layout == "npz" else _read_png
    return {sample.name: read(folder / sample.name, index.times, index.num_samples) for sample in index.samples}


def _read_npz(stem: Path, times: tuple[int, ...], count: int) -> Forecast:
    path = stem.with_name(f"{stem.name}.npz")
    arrays = _load(path)
    if "frames" in arrays:
        _check(path, arrays, "frames", "uint8", (count, len(times), None, None, 3))
        if arrays.get("times", np.zeros(0)).tolist() != list(times):
            raise _wrong(path, f"frames at {times}", f"{arrays.get('times')}")
    return _forecast(path, arrays, times, count)


def _read_png(folder: Path, times: tuple[int, ...], count: int) -> Forecast:
    frames = np.stack([[_read_picture(folder / _png(k, time)) for time in times] for k in range(count)])
    path = folder / "tokens.npz"
    return _forecast(path, {"frames": frames, **(_load(path) if path.exists() else {})}, times, count)


def _forecast(path: Path, arrays: dict[str, np.ndarray], times: tuple[int, ...], count: int) -> Forecast:
    if not arrays.keys() & {"frames", *TOKEN_ARRAYS}:
        raise _wrong(path, "frames or tokens", f"{sorted(arrays)}")
    found = {name: torch.from_numpy(array)[None] for name, array in arrays.items() if name != "times"}
    if "frames" in found:
        found["frames"] = rearrange(found["frames"], "b k t h w c -> b k t c h w")
    if arrays.keys() & TOKEN_ARRAYS.keys():
        _check(path, arrays, "tokens", "int32", (count, None, None, None))
        for name in ("top_ids", "top_log_probs"):
            _check(path, arrays, name, TOKEN_ARRAYS[name], (*arrays["tokens"].shape[1:], None))
        chances = arrays["top_log_probs"]
        if not (chances <= 0).all() or (np.diff(chances) > 0).any() or (np.exp(chances).sum(-1) > 1.001).any():
            raise _wrong(path, "log-probabilities of at most 0, likeliest first", f"{chances.min()} .. {chances.max()}")
        found |= {name: found[name].long() for name in ("tokens", "top_ids")}
    return Forecast(times=times, **found)  # pyright: ignore[reportArgumentType] - no costs among them


def _check(path: Path, arrays: dict[str, np.ndarray], name: str, dtype: str, shape: tuple[int | None, ...]) -> None:
    expected = f"{name}, {dtype} [{', '.join('*' if n is None else str(n) for n in shape)}]"
    if name not in arrays:
        raise _wrong(path, expected, f"{sorted(arrays)}")
    found = arrays[name]
    fits = found.ndim == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or not fits:
        raise _wrong(path, expected, f"{found.dtype} {list(found.shape)}")


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise _wrong(path, "arrays as numpy saves them", f"{type(error).__name__}: {error}") from error


def _token_arrays(forecast: Forecast, clip: int) -> dict[str, np.ndarray]:
    arrays = {name: getattr(forecast, name) for name in TOKEN_ARRAYS}
    return {name: value[clip].numpy().astype(TOKEN_ARRAYS[name]) for name, value in arrays.items() if value is not None}


def _frames(forecast: Forecast, clip: int) -> UInt8[np.ndarray, "k t h w 3"]:
    return np.ascontiguousarray(rearrange(forecast.video[clip].numpy(), "k t c h w -> k t h w c"))


def _write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def _png(future: int, time: int) -> str:
    return f"future_{future}/frame_{time:03d}.png"


def _read_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return np.array(Image.open(path).convert("RGB"))
    except (OSError, SyntaxError) as error:  # how Pillow says that a picture is damaged
        raise _wrong(path, "a picture", f"{type(error).__name__}: {error}") from error


def _wrong(path: Path, expected: str, found: str) -> DataError:
    return DataError(path, expected=expected, found=found, fix="Forecast again.")
