"""Motion over time, and inverse kinematics: sway, minimum-jerk moves, waypoints, and the joint angles for a place."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from worldline.twin.backend import load_mujoco
from worldline.twin.robot import JOINTS, SIDES, Side, arm_slice
from worldline.twin.simulation import Simulation

DAMPING = 0.05
"""Of the least-squares step, in m per rad: enough to stay calm near a stretched arm."""
POSTURE = 0.02
"""Pull towards the preferred posture in every iteration, which chooses among an arm's many solutions."""
Point = Float64[np.ndarray, "3"]


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

    where: Point | Float64[np.ndarray, "7"]
    duration: float
    """Time to get there, in s."""
    closure: float
    """Of the hand, 0 open .. 1 closed."""


def to_local(point: Point, base: Point) -> Point:
    """A point of the world as seen from a base at `(x, y, heading)`; heights stay."""
    x, y = point[:2] - base[:2]
    cos, sin = np.cos(base[2]), np.sin(base[2])
    return np.array([cos * x + sin * y, cos * y - sin * x, point[2]])


def to_world(point: Point, base: Point) -> Point:
    """A point given from a base at `(x, y, heading)` in the world; the inverse of `to_local`."""
    cos, sin = np.cos(base[2]), np.sin(base[2])
    x, y, z = point
    return np.array([base[0] + cos * x - sin * y, base[1] + sin * x + cos * y, z])


class Kinematics:
    """Forward and inverse kinematics of the robot of one simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._mujoco = load_mujoco()
        self._simulation, self._model = simulation, simulation.model
        self._data = self._mujoco.MjData(self._model)
        self._joints, self._dofs = simulation.places[: len(JOINTS)], simulation.dofs[: len(JOINTS)]
        self._grips = {side: self._model.site(f"{side}_GRIP").id for side in SIDES}

    def reach(
        self, side: Side, target: Point, command: Float32[np.ndarray, "25"], base: Point
    ) -> tuple[Float64[np.ndarray, "7"], float]:
        """Joint angles of one arm that bring its hand to `target`, and the distance in m that remains.

        Damped least squares within the joint limits, 25 steps at most. It starts from the arm's angles in `command`,
        which are also the preferred posture; other joints are as in `command`, the base is at `(x, y, heading)`.
        """
        arm = arm_slice(side)
        low, high = self._simulation.low[arm], self._simulation.high[arm]
        angles = command[: len(JOINTS)].astype(np.float64)
        preferred = angles[arm].copy()
        jacobian = np.zeros((3, self._model.nv))
        for _ in range(25):
            error = target - self._grip(side, angles, base)
            if np.linalg.norm(error) < 0.01:
                break
            self._mujoco.mj_comPos(self._model, self._data)
            self._mujoco.mj_jacSite(self._model, self._data, jacobian, None, self._grips[side])
            local = jacobian[:, self._dofs[arm]]
            step = local.T @ np.linalg.solve(local @ local.T + DAMPING**2 * np.eye(3), error)
            step += POSTURE * (preferred - angles[arm])
            angles[arm] = np.clip(angles[arm] + np.clip(step, -0.3, 0.3), low, high)
        return angles[arm], float(np.linalg.norm(target - self._grip(side, angles, base)))

    def _grip(self, side: Side, angles: np.ndarray, base: np.ndarray) -> Point:
        """Where a hand's grip is in the world, in m."""
        self._data.qpos[:3] = base
        self._data.qpos[self._joints] = angles
        self._mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._grips[side]]
