"""Forecasts on disk, in arrays and pictures that other programs read, and their reader.

    OUT/forecast.json                        what was forecast and how; written last, so where it is, all is there
    OUT/forecast.unfinished.json             the same, until then
    OUT/NAME.npz                             --format npz: `ARRAYS`
    OUT/NAME/future_K/frame_TTT.png          --format png: future K, frame TTT counted from the first of the context
    OUT/NAME/tokens.npz                      --format png, worlds over tokens: `ARRAYS` without frames
    OUT/NAME.mp4                             --format mp4: to be looked at, with the context before it

A sample of the challenge's test set is named as its file, `sample_12`; any other clip by its number, `clip_00012`.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worldline.files import atomic, read_json, read_npz, write_json
from worldline.formats.video import encode
from worldline.rundir import from_json, new_folder, to_json
from worldline.schema import DataError, Forecast, UsageError

INDEX, UNFINISHED = "forecast.json", "forecast.unfinished.json"
ARRAYS = {  # dtype and axes; k futures, t frames, l token grids, n likeliest tokens (500)
    "frames": ("uint8", "k t y x 3"),  # predicted frames, RGB
    "times": ("int32", "t"),  # their positions, counted from the first frame of the context
    "tokens": ("int32", "k l h w"),  # predicted token grids
    "top_ids": ("int32", "l h w n"),  # of future 0: the likeliest tokens of each place, likeliest first
    "top_log_probs": ("float32", "l h w n"),  # in nats, at temperature 1 over the whole vocabulary
}
TOKEN_ARRAYS = ("tokens", "top_ids", "top_log_probs")
_npz = partial(read_npz, what="arrays as numpy saves them", fix="Forecast again.")
_wrong = partial(DataError, fix="Forecast again.")
Layout = Literal["mp4", "png", "npz"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One forecast clip, its number among the clips of the data, and its first frame in its episode."""

    name: str
    clip: int
    episode: str
    start: int


@dataclass(frozen=True, kw_only=True)
class Index:
    """The content of `forecast.json`."""

    layout: Layout
    run: str
    checkpoint: str
    data: str
    fps: float
    """Video frames per second; `times` count these frames."""
    times: tuple[int, ...]
    num_samples: int
    seed: int
    settings: dict[str, str | int | float | bool]
    samples: tuple[Sample, ...]
    made_from: str = ""
    """Hash of all that decides what the files hold; empty where that is not known."""
    format: Literal[1] = 1


def save_npz(path: Path, forecast: Forecast, clip: int) -> None:
    """Write all arrays of one clip's forecast into one file."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **_arrays(forecast, clip))


def save_png(folder: Path, forecast: Forecast, clip: int) -> None:
    """Write the frames of one clip's forecast as pictures, and its tokens, if it has any, beside them."""
    arrays = _arrays(forecast, clip)
    times = arrays.pop("times").tolist()
    with new_folder(folder) as temporary:
        for number, future in enumerate(arrays.pop("frames")):
            (temporary / f"future_{number}").mkdir()
            for time, frame in zip(times, future, strict=True):
                Image.fromarray(frame).save(temporary / _png(number, time))
        if arrays:
            np.savez(temporary / "tokens.npz", allow_pickle=False, **arrays)


def save_mp4(path: Path, forecast: Forecast, clip: int, *, shown: tuple[Tensor, Tensor | None], fps: float) -> None:
    """Write one H.264 video: real | future 1 | ... | future k, small frames enlarged. Before the futures comes the
    context, darkened. `shown` is what `Forecaster.shown` says of all clips: context, and real frames if known.
    """
    (seen, real), futures = shown, forecast.video[clip]
    panels = [] if real is None else [torch.cat([seen[clip], real[clip]])]
    panels += [torch.cat([seen[clip] // 2, future]) for future in futures]
    row, (height, width) = torch.cat(panels, dim=-1).permute(0, 2, 3, 1), futures.shape[-2:]
    # Enough to look at, and an even size, which H.264 needs.
    scale = 4 if height <= 128 else 2 if height <= 256 or height % 2 or width % 2 else 1
    encode(path, row.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2).numpy(), fps=fps)


def _arrays(forecast: Forecast, clip: int) -> dict[str, np.ndarray]:
    arrays = {name: getattr(forecast, name, None) for name in ("frames", *TOKEN_ARRAYS)}
    found = {name: x[clip].numpy().astype(ARRAYS[name][0]) for name, x in arrays.items() if x is not None}
    if "frames" in found:
        found["frames"] = np.ascontiguousarray(found["frames"].transpose(0, 1, 3, 4, 2))
        found["times"] = np.array(forecast.times, np.int32)
    return found


def _png(future: int, time: int) -> str:
    return f"future_{future}/frame_{time:03d}.png"


def begin_index(folder: Path, index: Index, files: Sequence[Path]) -> set[Path]:
    """Say what is going to be forecast; give those of its files that are there already. Others of their names go."""
    said, names, known = to_json(Index, index), {f".{path.name}" for path in files}, False
    left = (path for path in folder.glob(".*.*") if path.suffix in (".tmp", ".old"))
    gone = [path for path in left if path.name.rsplit(".", 2)[0] in names]  # a killed writer's `.NAME.PID.tmp`
    for path in (folder / INDEX, folder / UNFINISHED):
        with suppress(DataError):  # absent, or damaged: what it said is not known
            known |= read_json(path) == said
    if not known:
        gone = [folder / INDEX, folder / UNFINISHED, *gone, *files]  # first what says that the others are sound
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(folder / UNFINISHED, said)
    (folder / INDEX).unlink(missing_ok=True)
    return {path for path in files if path.exists()}


def finish_index(folder: Path) -> None:
    """Say that all of it is there."""
    os.replace(folder / UNFINISHED, folder / INDEX)


def read_forecasts(folder: Path) -> dict[str, Forecast]:
    """Read every sample a forecast wrote, each as a batch of one.

    Raises:
        DataError: a file is missing, damaged or of another shape, type or range; names it.
        UsageError: the forecast was written as videos.
    """
    index: Index = from_json(Index, read_json(folder / INDEX), folder / INDEX)
    if index.layout == "mp4":
        raise UsageError(f"{folder} holds videos to be looked at; forecast with --format npz or png to read frames")
    return {sample.name: _read(folder / sample.name, index) for sample in index.samples}


def _read(stem: Path, index: Index) -> Forecast:
    path = stem.with_name(f"{stem.name}.npz") if index.layout == "npz" else stem / "tokens.npz"
    arrays = _npz(path) if index.layout == "npz" or path.exists() else {}
    if index.layout == "png":
        futures = [[_picture(stem / _png(k, time)) for time in index.times] for k in range(index.num_samples)]
        arrays["frames"] = np.stack(futures)
    _check(path, arrays, index)
    found = {name: torch.from_numpy(array)[None] for name, array in arrays.items() if name != "times"}
    if "frames" in found:
        found["frames"] = found["frames"].permute(0, 1, 2, 5, 3, 4)
    found |= {name: found[name].long() for name in ("tokens", "top_ids") if name in found}
    return Forecast(times=index.times, **found)  # pyright: ignore[reportArgumentType] - no costs among them


def _check(path: Path, arrays: dict[str, np.ndarray], index: Index) -> None:
    """Refuse arrays of other types, shapes or ranges than the layout promises. Raises `DataError`."""
    tokens = [name for name in TOKEN_ARRAYS if name in arrays]
    if len(tokens) not in (0, 3) or not arrays:
        raise _wrong(path, expected="frames, or tokens with the likeliest ones, or both", found=f"{sorted(arrays)}")
    sizes = {"k": index.num_samples, "t": len(index.times), "3": 3}
    for name in (name for name in ARRAYS if name in arrays):
        (dtype, axes), found = ARRAYS[name], arrays[name]
        expected = [sizes.get(axis, "*") for axis in axes.split()]
        fits = len(expected) == found.ndim and all(n in (m, "*") for n, m in zip(expected, found.shape, strict=True))
        if found.dtype != dtype or not fits:
            raise _wrong(path, expected=f"{name}, {dtype} {expected}", found=f"{found.dtype} {[*found.shape]}")
        sizes |= dict(zip(axes.split(), found.shape, strict=True))
    if "times" in arrays and arrays["times"].tolist() != list(index.times):
        raise _wrong(path, expected=f"frames at {index.times}", found=f"{arrays['times']}")
    if tokens:
        chances = arrays["top_log_probs"]
        if not (chances <= 0).all() or (np.diff(chances) > 0).any() or (np.exp(chances).sum(-1) > 1.001).any():
            found = f"{chances.min()} .. {chances.max()}"
            raise _wrong(path, expected="log-probabilities of at most 0, likeliest first", found=found)


def _picture(path: Path) -> np.ndarray:
    try:
        return np.array(Image.open(path).convert("RGB"))
    except (OSError, SyntaxError) as error:  # how Pillow says that a picture is damaged
        raise _wrong(path, expected="a picture", found=f"{type(error).__name__}: {error}") from error
