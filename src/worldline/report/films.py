"""Example forecasts -> a player's pictures and numbers. Knows nothing of HTML.

A video in a page cannot be stopped at an exact frame everywhere, so the frames of a clip lie side by side on one sheet,
which a script cuts apart. All panels of a player are drawn from one frame number and cannot go out of step. Sheets are
lossless where a page stays small with them, else the best of `LADDER` that does.
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from worldline.evaluation.result import label_of
from worldline.metrics.image import psnr

BUDGET = 3_750_000
"""Bytes for the sheets of a page, which base64 makes a third longer: a page of a few runs stays under 8 MB."""
SHEET_WIDTH, LONGEST_SIDE = 4096, 16383
"""Wider sheets go on in a further line, but where that makes them too high: WebP and browsers take no longer side."""
SHORTEST_SECONDS = 2.5
AMPLIFIED = 4
"""Of errors and spreads, for the eye: colours end at 255 / 4 grey levels."""
LARGEST_MAP = 128


class Map(NamedTuple):
    """How unsure the forecast was of each place, at each frame after the context; larger is less sure, NaN unknown."""

    id: str
    label: str
    unit: str
    values: Float[np.ndarray, "n f a b"]


class Forecasts(NamedTuple):
    """Example forecasts beside what really happened. Frames include the context, which comes first."""

    real: UInt8[np.ndarray, "n t h w 3"]
    rows: dict[str, UInt8[np.ndarray, "n t h w 3"]]
    context: int
    """Frames the forecasters were given."""
    psnr: Float[np.ndarray, " n"]
    """PSNR in dB of the last frame of each clip's forecast by the first row."""
    maps: tuple[Map, ...] = ()


class Sheet(NamedTuple):
    """Frames of one size on one picture, `columns` of them in a line."""

    uri: str
    columns: int


class Chosen(NamedTuple):
    """A clip that a reader can choose."""

    place: int
    """Among the clips that the evaluation kept."""
    titles: tuple[str, ...]
    """What it is chosen for: `best`, `median`, `worst`, `most surprising`, or nothing of these."""
    psnr: float

    @property
    def label(self) -> str:
        words = " and ".join(self.titles) or f"clip {self.place + 1}"
        return words[0].upper() + words[1:]


class Panel(NamedTuple):
    """What one panel can show: a row's frames after the context, or all frames of what really happened."""

    id: str
    label: str
    sheets: tuple[Sheet, ...]
    """Of each chosen clip."""
    psnr: Float[np.ndarray, "n f"] | None = None
    unit: str = ""
    top: float = 0.0
    """Of a map: its value where colours end."""


@dataclass(frozen=True, kw_only=True)
class Player:
    """Chosen clips of one run, at `fps` shown frames per second, `slower` times slower than they were recorded."""

    clips: tuple[Chosen, ...]
    surprise: str
    """Why a clip is the most surprising one."""
    real: Panel
    rows: tuple[Panel, ...]
    maps: tuple[Panel, ...]
    frames: int
    context: int
    size: tuple[int, int]
    """Height and width of the stored frames in pixels."""
    fps: float | None
    """None where the recorded rate is not known."""
    slower: int
    stored: str
    """How the pictures are stored, for who reads them closely."""
    origins: tuple[str, ...] = ()
    """Where each kept clip is from; empty if that is not known."""

    def numbers(self) -> dict[str, Any]:
        """What the page's script needs beside the pictures."""
        return {
            "frames": self.frames,
            "context": self.context,
            "fps": self.fps or 10.0,
            "known": self.fps is not None,
            "slower": self.slower,
            "amplified": AMPLIFIED,
            "clips": [clip.label for clip in self.clips],
            "origins": [self.origins[clip.place] for clip in self.clips] if self.origins else [],
            "rows": [
                {"id": row.id, "label": row.label, "psnr": [] if row.psnr is None else row.psnr.round(2).tolist()}
                for row in self.rows
            ],
            "maps": [{"label": one.label, "unit": one.unit, "top": one.top} for one in self.maps],
        }


class Storing(NamedTuple):
    """A way to store pictures."""

    quality: int | None
    """Of JPEG with full colour; None is lossless WebP."""
    side: int
    """Larger frames are reduced to at most this many pixels a side."""
    few: bool = False
    """Only clips that have a title."""


LADDER = (
    Storing(None, 256),
    Storing(95, 256),
    Storing(88, 256),
    Storing(80, 192),
    Storing(80, 192, few=True),
    Storing(70, 128, few=True),
    Storing(60, 64, few=True),
)
"""From the best to the smallest."""


def players(found: Sequence[Forecasts], rates: Sequence[float | None], *, budget: int = BUDGET) -> list[Player]:
    """Make a player of each run's forecasts, recorded at these rates, all stored in one way that fits the budget."""
    storing = next((way for way in LADDER if sum(_size(one, way) for one in found) <= budget), LADDER[-1])
    return [_player(one, rate, storing) for one, rate in zip(found, rates, strict=True)]


def surprise(forecasts: Forecasts) -> tuple[Float[np.ndarray, " n"], str]:
    """How surprising each clip is, and in which sense, defined here once.

    With a map of how sure the forecast was: its error over all predicted frames (root mean square) less its mean
    unsureness, each as deviations from the mean of the clips, so the largest is where it was most wrong for how sure it
    was. Without: how much worse it is than the last frame it was given, in dB of PSNR over all predicted frames.
    """
    frames, context = next(iter(forecasts.rows.values())), forecasts.context
    off = frames[:, context:].astype(np.float32) - forecasts.real[:, context:]
    if forecasts.maps:
        error = np.sqrt((off**2).mean(axis=(1, 2, 3, 4)))
        unsure = np.array([_mean(clip) for clip in forecasts.maps[0].values])
        why = f"where the forecast was most wrong for how sure it was ({forecasts.maps[0].label})"
        return _deviations(error) - _deviations(unsure), why
    worse = _psnr(_copied(forecasts), forecasts).mean(axis=1) - _psnr(frames, forecasts).mean(axis=1)
    return worse, "where the forecast does worst beside a copy of the last frame it was given"


def chosen(forecasts: Forecasts) -> tuple[Chosen, ...]:
    """All kept clips, those with a title first: best, median and worst by PSNR, and the most surprising one."""
    order = [int(clip) for clip in np.argsort(-forecasts.psnr, kind="stable")]
    if len(order) == 1:
        return (Chosen(order[0], ("the only clip",), float(forecasts.psnr[order[0]])),)
    titles = {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}
    if len(order) == 2:
        del titles["median"]
    titles["most surprising"] = int(np.argmax(surprise(forecasts)[0]))
    places = list(dict.fromkeys([*titles.values(), *range(len(order))]))
    return tuple(
        Chosen(place, tuple(name for name, clip in titles.items() if clip == place), float(forecasts.psnr[place]))
        for place in places
    )


def _player(forecasts: Forecasts, fps: float | None, storing: Storing) -> Player:
    clips = _kept(forecasts, storing)
    places, context = [clip.place for clip in clips], forecasts.context
    rows = {name: frames[:, context:] for name, frames in forecasts.rows.items()}
    rows.setdefault("copy_last", _copied(forecasts)[:, context:])
    panels = tuple(
        Panel(id, label_of(id), sheets(frames[places], storing), _psnr(frames, forecasts)[places])
        for id, frames in rows.items()
    )
    frames, size = forecasts.real.shape[1], _reduced(forecasts.real[0, :1], storing.side).shape[1:3]
    seconds = frames / fps if fps else math.inf
    slower = next((n for n in (1, 2, 4, 8) if seconds * n >= SHORTEST_SECONDS), 16)
    return Player(
        clips=clips,
        surprise=surprise(forecasts)[1],
        real=Panel("real", "truth", sheets(forecasts.real[places], storing)),
        rows=panels,
        maps=tuple(_map(one, places) for one in forecasts.maps),
        frames=frames,
        context=context,
        size=(size[0], size[1]),
        fps=fps,
        slower=slower,
        stored=_stored(forecasts, storing, len(clips)),
    )


def _kept(forecasts: Forecasts, storing: Storing) -> tuple[Chosen, ...]:
    return tuple(clip for clip in chosen(forecasts) if clip.titles or not storing.few)


def _stored(forecasts: Forecasts, storing: Storing, clips: int) -> str:
    """Say how far the pictures of the page are from those that were scored."""
    there, (height, width) = len(forecasts.real), forecasts.real.shape[2:4]
    small = _reduced(forecasts.real[0, forecasts.context :], storing.side)
    said = "Every pixel is as it was scored"
    if storing.quality is not None:
        kept = _cut(Image.open(io.BytesIO(_encoded(small, storing))), small)
        off = np.abs(kept.astype(np.int16) - small).mean()
        said = f"Pictures are stored as JPEG of quality {storing.quality}, on average {off:.1f} of 255 grey levels off"
    if small.shape[1:3] != (height, width):
        said += f"; reduced from {height} x {width} to {small.shape[1]} x {small.shape[2]} pixels"
    if clips < there:
        said += f"; {clips} of the {there} kept clips are here, so that the page stays small"
    return f"{said}. PSNR is of the pictures that were scored."


# --- numbers ---


def _psnr(frames: UInt8[np.ndarray, "n _ h w 3"], forecasts: Forecasts) -> Float[np.ndarray, "n f"]:
    """PSNR in dB of each frame after the context; `frames` may begin with the context or after it."""
    real = forecasts.real[:, forecasts.context :]
    one, other = (torch.from_numpy(np.moveaxis(x, -1, -3)) for x in (frames[:, -real.shape[1] :], real))
    return torch.stack([psnr(a, b) for a, b in zip(one, other, strict=True)]).double().numpy()


def _copied(forecasts: Forecasts) -> UInt8[np.ndarray, "n t h w 3"]:
    """The last context frame instead of a forecast."""
    real, context = forecasts.real, forecasts.context
    still = np.repeat(real[:, [context - 1]], real.shape[1] - context, axis=1)
    return np.concatenate([real[:, :context], still], axis=1)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else 0.0


def _deviations(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1.0)


# --- sheets ---


def _size(forecasts: Forecasts, storing: Storing) -> int:
    """Bytes of all sheets, from those of one clip."""
    clip, context = len(forecasts.real) // 2, forecasts.context
    views = [forecasts.real[clip], *(frames[clip, context:] for frames in forecasts.rows.values())]
    one = sum(len(_encoded(_reduced(view, storing.side), storing)) for view in views)
    one += sum(len(_grey(_shades(found)[clip])) for found in forecasts.maps)
    return one * len(_kept(forecasts, storing))


def sheets(clips: UInt8[np.ndarray, "n t h w 3"], storing: Storing) -> tuple[Sheet, ...]:
    """The frames of each clip on a sheet of its own."""
    kind = "webp" if storing.quality is None else "jpeg"
    return tuple(
        Sheet(_uri(_encoded(small, storing), kind), _columns(small))
        for small in (_reduced(clip, storing.side) for clip in clips)
    )


def _map(one: Map, places: Sequence[int]) -> Panel:
    """A map as grey sheets: 0 where it is not known, else 1 up to 255 at `top`."""
    clips = [_reduced(clip, LARGEST_MAP) for clip in _shades(one)[list(places)]]
    sheets = tuple(Sheet(_uri(_grey(clip), "png"), _columns(clip)) for clip in clips)
    return Panel(one.id, one.label, sheets, unit=one.unit, top=_top(one))


def _top(one: Map) -> float:
    """Where colours end: as far as those of errors where the unit is the same, else at nearly the largest value."""
    if one.unit == "grey levels":
        return 255 / AMPLIFIED
    known = one.values[np.isfinite(one.values)]
    return (float(np.quantile(known, 0.995)) if known.size else 0.0) or 1.0


def _shades(one: Map) -> UInt8[np.ndarray, "n f a b 1"]:
    known = np.isfinite(one.values)
    shade = 1 + 254 * np.clip(np.where(known, one.values, 0) / _top(one), 0, 1)
    return np.where(known, shade, 0).round().astype(np.uint8)[..., None]


def _grey(frames: UInt8[np.ndarray, "f a b 1"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_laid(_reduced(frames, LARGEST_MAP))[..., 0]).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _reduced(frames: UInt8[np.ndarray, "t h w c"], side: int) -> UInt8[np.ndarray, "t _ _ c"]:
    """Frames of at most `side` pixels a side: each pixel the mean of a square."""
    factor = -(-max(frames.shape[1:3]) // side)
    if factor == 1:
        return frames
    small = [Image.fromarray(np.squeeze(frame)).reduce(factor) for frame in frames]
    return np.stack([np.asarray(one).reshape(one.height, one.width, -1) for one in small])


def _columns(frames: np.ndarray) -> int:
    count, height, width = frames.shape[:3]
    lowest = math.ceil(count / max(1, LONGEST_SIDE // height))  # more of them where the sheet would be too high
    return min(count, max(1, SHEET_WIDTH // width, lowest))


def _laid(frames: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "_ _ c"]:
    """All frames on one picture, line by line; what is left of the last line is black."""
    columns = _columns(frames)
    missing = -len(frames) % columns
    full = np.concatenate([frames, np.zeros((missing, *frames.shape[1:]), np.uint8)])
    return rearrange(full, "(r k) h w c -> (r h) (k w) c", k=columns)


def _cut(sheet: Image.Image, like: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "t h w c"]:
    """The inverse of `_laid`."""
    pixels = np.asarray(sheet.convert("RGB"))
    return rearrange(pixels, "(r h) (k w) c -> (r k) h w c", h=like.shape[1], w=like.shape[2])[: len(like)]


def _encoded(frames: UInt8[np.ndarray, "t h w 3"], storing: Storing) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(_laid(frames))
    if storing.quality is None:
        picture.save(buffer, "WEBP", lossless=True, method=2, quality=0)  # a third of the time for half a percent more
    else:
        picture.save(buffer, "JPEG", quality=storing.quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def strips(player: Player) -> Iterator[tuple[int, Panel, Sheet]]:
    """Every sheet of a player: number of its clip, its panel, and itself; clip by clip."""
    for number in range(len(player.clips)):
        for panel in (player.real, *player.rows, *player.maps):
            yield number, panel, panel.sheets[number]
