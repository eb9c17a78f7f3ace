"""A simulation whose contacts are kept: what physics knows of an episode at each of its frames."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from worldline.twin.simulation import Simulation

First = Int64[np.ndarray, "2 o"]
"""Frame at which each object was first touched by a hand, and by any part of the robot; -1 where it was not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What physics knows at one frame of an episode. Frames are counted from its start, whose number is 0."""

    frame: int
    state: Float32[np.ndarray, "25"]
    """Measured."""
    objects: Float64[np.ndarray, "o 3"]
    """Positions of the movable objects in the world, in m."""
    turns: Float64[np.ndarray, "o 3 3"]
    """Their rotations from their own axes into the world's."""
    touched: First


class Trial:
    """A simulation that goes on by commands or states and keeps who touched what.

    With `touched` and `frame` of its `facts`, and the snapshot of its simulation, it can be taken up again.
    """

    def __init__(self, simulation: Simulation, *, touched: First | None = None, frame: int = 0) -> None:
        self.simulation, self.frame = simulation, frame
        self._touched = np.full((2, len(simulation.scene.objects)), -1) if touched is None else touched.copy()

    def step(self, command: Float32[np.ndarray, "25"]) -> None:
        """Advance by one frame towards a command."""
        new = np.zeros(self._touched.shape, dtype=bool)
        self.simulation.step(command, touched=new)
        self._keep(new)

    def go(self, state: Float32[np.ndarray, "25"]) -> None:
        """Be moved to a measured state within one frame (`Simulation.follow`)."""
        new = np.zeros(self._touched.shape, dtype=bool)
        self.simulation.go(state, touched=new)
        self._keep(new)

    def facts(self) -> Facts:
        """What physics knows now."""
        now = self.simulation
        places = {"objects": now.objects(), "turns": now.turns()}
        return Facts(frame=self.frame, state=now.state(), touched=self._touched.copy(), **places)

    def _keep(self, new: np.ndarray) -> None:
        self.frame += 1
        self._touched[new & (self._touched < 0)] = self.frame
