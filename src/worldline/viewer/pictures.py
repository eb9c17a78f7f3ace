"""Frames as bytes that a browser shows, and maps of numbers as transparent colours above them."""

from io import BytesIO
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SMALL = 256
"""Side in pixels up to which a picture is sent without loss; larger ones would be slow to pack."""
QUALITY = 92
"""Of JPEG, for larger ones."""
COLOURS = ("#0d0887", "#7e03a8", "#cc4778", "#f89540", "#f0f921")
"""From low to high; the perceptually even map `plasma` of matplotlib at five places."""
_MOST_OPAQUE = 200

Media = Literal["image/png", "image/jpeg"]


def encoded(frame: UInt8[np.ndarray, "h w 3"]) -> tuple[Media, bytes]:
    """PNG of a small frame, which loses nothing; JPEG of a large one."""
    into = BytesIO()
    if max(frame.shape[:2]) <= SMALL:
        Image.fromarray(frame).save(into, "PNG", compress_level=1)
        return "image/png", into.getvalue()
    Image.fromarray(frame).save(into, "JPEG", quality=QUALITY, subsampling=0)
    return "image/jpeg", into.getvalue()


def decoded(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The frame again."""
    return np.array(Image.open(BytesIO(data)).convert("RGB"))


def heat(values: Float[np.ndarray, "gh gw"], *, low: float, high: float, size: tuple[int, int]) -> bytes:
    """A PNG of `size` (height, width) in which low values are clear and high ones are bright, cells as blocks."""
    share = np.clip((values.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1)
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS], np.float32)
    place = share * (len(stops) - 1)
    below = np.minimum(place.astype(int), len(stops) - 2)
    colours = stops[below] + (stops[below + 1] - stops[below]) * (place - below)[..., None]
    picture = np.concatenate([colours, share[..., None] * _MOST_OPAQUE], axis=-1).round().astype(np.uint8)
    into = BytesIO()
    height, width = size
    Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST).save(into, "PNG", compress_level=1)
    return into.getvalue()
