"""The live twin beside a forecast: MuJoCo in the same room, moved to the same states, from the end of the context.

Its physics after every shown frame is kept with the branch (a few kilobytes), so that it follows to wherever the person
goes: from the nearest earlier frame on it runs through the states of the branch.
"""

import numpy as np
from jaxtyping import UInt8

from worldline.schema import UsageError
from worldline.twin.generate import physics_of, resume
from worldline.twin.simulation import Simulation
from worldline.viewer.branches import Branch
from worldline.viewer.recording import Recording

AT_ONCE = 450
"""Video frames that it catches up with at most, for one picture."""


class Mirror:
    """The twin of one clip. It owns an OpenGL context: one thread makes, uses and closes it."""

    def __init__(self, recording: Recording) -> None:
        """Raises what `resume` and `physics_of` raise."""
        root, number = physics_of(recording.clips.source, recording.episode)
        self.begin = recording.forecaster.context_frames - 1
        self.simulation: Simulation = resume(root, number, recording.start + self.begin)[0]
        self._first, self._at = self.simulation.snapshot(), (None, self.begin)

    def frame(self, branch: Branch, time: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """What the robot would really see at a video frame of a branch; None within the context.

        Raises `UsageError` where it would have to catch up for too long.
        """
        if time < self.begin:
            return None
        known = max((one for one in branch.physics if one <= time), default=self.begin)
        if time - known > AT_ONCE:
            raise UsageError(
                f"the twin is {time - known} frames behind this one, which is too many; rewind, or begin again"
            )
        # Where it is already, it goes on; elsewhere it is put there.
        if self._at != (branch.id, known) or known == time:
            self.simulation.restore(branch.physics.get(known, self._first))
        if known < time:
            frames = self.simulation.follow(np.stack(branch.rows[known + 1 : time + 1]))
            branch.physics[time] = self.simulation.snapshot()
            picture = frames[-1]
        else:
            picture = self.simulation.frame()
        self._at = branch.id, time
        return picture

    def close(self) -> None:
        """Free the OpenGL context."""
        self.simulation.close()
