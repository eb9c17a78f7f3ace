"""Moving pictures of forecasts for a page: panels side by side, H.264, as a data URI. Knows nothing of HTML.

Every panel has a frame of its own, in the pixels: grey while it shows what the forecaster was given, orange while it
shows what it made.
"""

import base64
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange, repeat
from jaxtyping import UInt8

from worldline.evaluation.result import label_of
from worldline.formats.video import encode
from worldline.report.gather import Forecasts

GIVEN, PREDICTED = (140, 145, 152), (230, 120, 40)
SHORTEST_SECONDS = 2.5
PANEL_WIDTH = 192
"""Narrower panels are enlarged to about this before encoding: H.264 keeps one colour per 2x2 pixels."""


class Film(NamedTuple):
    """One clip as a page shows it, at `fps` frames per second, which is `speed` (say, `at 1/4 speed`)."""

    title: str
    psnr: float
    panels: tuple[str, ...]
    uri: str
    num_frames: int
    context: int
    fps: float
    speed: str


def films(forecasts: Forecasts, fps: float | None) -> list[Film]:
    """Film the best, median and worst clip by PSNR (of few clips fewer) of a recording at `fps`, if that is known."""
    order = [int(clip) for clip in np.argsort(-forecasts.psnr, kind="stable")]
    chosen = [("Best clip", order[0]), ("Median clip", order[(len(order) - 1) // 2]), ("Worst clip", order[-1])]
    few = {1: [("The only clip", order[0])], 2: [chosen[0], chosen[-1]]}
    return [_film(*one, forecasts, fps) for one in few.get(len(order), chosen)]


def strip(panels: list[UInt8[np.ndarray, "t h w 3"]], context: int) -> UInt8[np.ndarray, "t height width 3"]:
    """Put panels side by side, each in its frame. The first is the real video and stays grey throughout."""
    width = panels[0].shape[2]
    scale = -(-PANEL_WIDTH // width)
    border = max(4, scale * width // 96 * 2)
    framed = []
    for number, panel in enumerate(panels):
        big = repeat(panel, "t h w c -> t (h a) (w b) c", a=scale, b=scale)
        # H.264 wants even sizes.
        big = np.pad(big, ((0, 0), (0, big.shape[1] % 2), (0, big.shape[2] % 2), (0, 0)), mode="edge")
        canvas = np.empty((len(big), big.shape[1] + 2 * border, big.shape[2] + 2 * border, 3), np.uint8)
        canvas[:] = GIVEN
        if number:
            canvas[context:] = PREDICTED
        canvas[:, border:-border, border:-border] = big
        framed.append(canvas)
    return rearrange(framed, "n t h w c -> t h (n w) c")


def _film(title: str, clip: int, forecasts: Forecasts, fps: float | None) -> Film:
    real, context = forecasts.real[clip], forecasts.context
    panels = {"real": real, **{name: frames[clip] for name, frames in forecasts.rows.items()}}
    panels.setdefault("copy_last", np.concatenate([real[:context], real[[context - 1] * (len(real) - context)]]))
    if fps is None:
        shown, speed = 10.0, "at 10 frames per second; the recorded rate is not known"
    else:  # short clips are slowed down by powers of two
        slower = next((n for n in (1, 2, 4, 8) if len(real) * n / fps >= SHORTEST_SECONDS), 16)
        shown, speed = fps / slower, "in real time" if slower == 1 else f"at 1/{slower} speed"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode(path, strip(list(panels.values()), context), fps=shown, crf=16, gop=8)
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    names, uri = tuple(label_of(name) for name in panels), f"data:video/mp4;base64,{data}"
    return Film(title, float(forecasts.psnr[clip]), names, uri, len(real), context, shown, speed)
