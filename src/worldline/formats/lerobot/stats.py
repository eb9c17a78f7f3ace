"""Statistics as LeRobot keeps them: of each column and camera, per episode, and of all episodes together.

Minimum, maximum, mean, standard deviation and count of all are exact. Quantiles of several episodes are the mean of
theirs, weighted by their lengths, as LeRobot's own tools have it: exact ones would need all values at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


class Histogram:
    """How often each value of each colour was seen."""

    def __init__(self) -> None:
        self.counts: Int64[np.ndarray, "3 256"] = np.zeros((3, 256), np.int64)
        self.frames = 0

    def add(self, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
        self.frames += len(frames)
        for colour in range(3):
            self.counts[colour] += np.bincount(frames[..., colour].ravel(), minlength=256)


def of_rows(values: np.ndarray) -> dict[str, Any]:
    """Statistics of a column, rows first: a number for each place of a row."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found |= dict(zip(_QUANTILES, np.quantile(rows, list(_QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(rows)]}


def of_images(seen: Histogram) -> dict[str, Any]:
    """Statistics of a camera: for each colour, in 0..1, of shape 3 x 1 x 1; the count is of frames."""
    levels, counts = np.arange(256) / 255, seen.counts
    total = counts.sum(1, keepdims=True)
    mean = (counts * levels).sum(1, keepdims=True) / total
    found = {"min": levels[(counts > 0).argmax(1)], "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)]}
    found |= {"mean": mean[:, 0], "std": np.sqrt((counts * (levels - mean) ** 2).sum(1) / total[:, 0])}
    share = counts.cumsum(1) / total
    found |= {name: levels[(share >= part).argmax(1)] for name, part in _QUANTILES.items()}
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [seen.frames]}


def aggregated(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of several episodes together, by feature; all parts have the same features."""
    return {key: _together([part[key] for part in parts]) for key in parts[0]}


def _together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    arrays = {name: np.array([part[name] for part in parts], np.float64) for name in parts[0]}
    counts = arrays["count"].reshape(-1, *(1,) * (arrays["mean"].ndim - 1))
    weights = counts / counts.sum()
    mean = (arrays["mean"] * weights).sum(0)
    spread = (arrays["std"] ** 2 + (arrays["mean"] - mean) ** 2) * weights
    found = {"min": arrays["min"].min(0), "max": arrays["max"].max(0), "mean": mean, "std": np.sqrt(spread.sum(0))}
    found |= {name: (arrays[name] * weights).sum(0) for name in _QUANTILES}
    return {name: value.tolist() for name, value in found.items()} | {"count": [int(counts.sum())]}
