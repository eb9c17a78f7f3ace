"""Motion over time: sway, minimum-jerk moves and waypoints."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64


class Sway(NamedTuple):
    """A slow and a faster sine for every entry of a command; its value at any time is known beforehand."""

    amplitude: Float64[np.ndarray, "25"]
    """Peak, in the unit of the entry."""
    frequency: Float64[np.ndarray, "2 25"]
    """In Hz."""
    phase: Float64[np.ndarray, "2 25"]

    def at(self, time: float) -> Float64[np.ndarray, "25"]:
        """The deviation from rest at `time` s."""
        slow, fast = np.sin(2 * np.pi * self.frequency * time + self.phase)
        return self.amplitude * (0.75 * slow + 0.25 * fast)


class Move(NamedTuple):
    """A minimum-jerk move of one arm: seven joint angles in rad and the closure of the hand (0..1)."""

    start: Float64[np.ndarray, "8"]
    goal: Float64[np.ndarray, "8"]
    begin: float
    """Time in s; so is the duration."""
    duration: float

    def at(self, time: float) -> Float64[np.ndarray, "8"]:
        """The pose at `time` s: the start before the move, the goal after it (Flash and Hogan 1985)."""
        x = np.clip((time - self.begin) / self.duration, 0.0, 1.0)
        return self.start + (self.goal - self.start) * (x**3 * (10 - 15 * x + 6 * x**2))


class Waypoint(NamedTuple):
    """Where a hand is to be next: a point in the world in m, or the arm's joint angles in rad."""

    where: Float64[np.ndarray, "3"] | Float64[np.ndarray, "7"]
    duration: float
    """Time to get there, in s."""
    closure: float
    """Of the hand, 0 open .. 1 closed."""


def to_local(point: Float64[np.ndarray, "3"], base: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    """A point of the world as seen from a base at `(x, y, heading)`; heights stay."""
    x, y = point[:2] - base[:2]
    cos, sin = np.cos(base[2]), np.sin(base[2])
    return np.array([cos * x + sin * y, cos * y - sin * x, point[2]])


def to_world(point: Float64[np.ndarray, "3"], base: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    """A point given from a base at `(x, y, heading)` in the world; the inverse of `to_local`."""
    cos, sin = np.cos(base[2]), np.sin(base[2])
    x, y, z = point
    return np.array([base[0] + cos * x - sin * y, base[1] + sin * x + cos * y, z])
