"""Which frame of a video belongs to which row of a table: by time, never by a nominal rate. Opens no file.

Rows carry seconds since their episode began, frames the seconds at which they are shown. Every row gets the frame
nearest in time. If it is more than half a frame away, the two do not belong together, and no frame is given.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

RATE_SLACK = 0.03
"""Clocks of recorders differ and jitter by less than this; no two usual rates are that near but 29.97 and 30."""
CLOCK_SLACK = 0.005
"""Rows and frames that are one to one may differ by this in rate (29.97 and 30)."""
_HALF = 0.52
"""Half a frame, and a little: time stamps are rounded to float32 and to a container's time base."""


class Mismatch(NamedTuple):
    """The first row that has no frame of its own, and when it and the nearest frame are, in seconds on one clock."""

    row: int
    at: float
    nearest: float


def rate(times: Float64[np.ndarray, "n"]) -> float:
    """Steps per second, from the median step; 0 where there is none."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / step if step > 0 else 0.0


def runs_at(times: Float64[np.ndarray, "n"], fps: float, *, slack: float = RATE_SLACK) -> bool:
    """Tell whether times run at a rate, up to jitter, a gap and the clocks of recorders."""
    if len(times) < 2 or abs(rate(times) - fps) <= slack * fps:
        return True
    steps = len(times) - 1
    return bool(abs((times[-1] - times[0]) * fps - steps) <= max(1.0, slack * steps))


def pair(
    rows: Float64[np.ndarray, "n"],
    shown: Float64[np.ndarray, "m"],
    *,
    starts: tuple[float, ...],
    first: int | None,
    fps: float,
) -> Int64[np.ndarray, "n"] | Mismatch:
    """Give the frame of every row; times are in seconds, and rise.

    Args:
        starts: where in the file the episode may begin, the likeliest first. Rows may also be stamped with a clock that
            does not begin at 0: then their first is taken to be there.
        first: the frame at which the episode begins, where as many frames as rows are known to be its own.
        fps: the rate where there is no step to measure it by.
    """
    steps = [float(np.median(np.diff(times))) for times in (rows, shown) if len(times) > 1]
    half = _HALF * min(steps, default=1 / fps)
    if first is not None and first + len(rows) <= len(shown):
        own = shown[first : first + len(rows)]
        faster = (rows[-1] - rows[0]) / (own[-1] - own[0]) if len(rows) > 1 else 1.0  # the rows' clock
        faster = faster if abs(faster - 1) <= CLOCK_SLACK else 1.0
        if np.abs((own - own[0]) * faster - (rows - rows[0])).max() <= half:
            return first + np.arange(len(rows))
    mismatches: list[Mismatch] = []
    for start in starts:
        for begun in (0.0, float(rows[0])) if rows[0] != 0 else (0.0,):
            found = _nearest(rows - begun + start, shown, half)
            if not isinstance(found, Mismatch):
                return found
            mismatches.append(found)
    return max(mismatches, key=lambda mismatch: mismatch.row)


def _nearest(
    wanted: Float64[np.ndarray, "n"], shown: Float64[np.ndarray, "m"], half: float
) -> Int64[np.ndarray, "n"] | Mismatch:
    """The frame nearest to each time, unless one is further than `half` away or is nearest to two."""
    frames = np.searchsorted((shown[1:] + shown[:-1]) / 2, wanted)
    wrong = np.flatnonzero((np.abs(shown[frames] - wanted) > half) | (np.diff(frames, prepend=-1) <= 0))
    if len(wrong) == 0:
        return frames
    row = int(wrong[0])
    return Mismatch(row=row, at=float(wanted[row] - wanted[0]), nearest=float(shown[frames[row]] - wanted[0]))
