"""Inverse kinematics: the joint angles that bring a hand to a place. It never changes the simulation."""

import numpy as np
from jaxtyping import Float32, Float64

from worldline.twin.backend import load_mujoco
from worldline.twin.robot import JOINTS, SIDES, Side, arm_slice
from worldline.twin.simulation import Simulation

DAMPING = 0.05
"""Of the least-squares step, in m per rad: enough to stay calm near a stretched arm."""
POSTURE = 0.02
"""Pull towards the preferred posture in every iteration, which chooses among an arm's many solutions."""
_Point = Float64[np.ndarray, "3"]


class Kinematics:
    """Forward and inverse kinematics of the robot of one simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._mujoco = load_mujoco()
        self._simulation, self._model = simulation, simulation.model
        self._data = self._mujoco.MjData(self._model)
        self._joints, self._dofs = simulation.places[: len(JOINTS)], simulation.dofs[: len(JOINTS)]
        self._grips = {side: self._model.site(f"{side}_GRIP").id for side in SIDES}

    def reach(
        self, side: Side, target: _Point, command: Float32[np.ndarray, "25"], base: _Point
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

    def _grip(self, side: Side, angles: np.ndarray, base: np.ndarray) -> _Point:
        """Where a hand's grip is in the world, in m."""
        self._data.qpos[:3] = base
        self._data.qpos[self._joints] = angles
        self._mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._grips[side]]
