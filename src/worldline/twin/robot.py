"""The robot of the twin: a wheeled humanoid of simple shapes with EVE's kinematics; `robot.xml` is its model.

Joint order and names are those of the 1X data. A **state** and a **command** are the same 25 numbers (`LAYOUT`):
21 joint angles in rad, measured or wanted, two hand closures (0 open .. 1 closed), forward velocity in m/s and turning
velocity in rad/s (left positive).
"""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from worldline.formats.states import ONEX_LAYOUT

MODEL = Path(__file__).with_name("robot.xml")
Side = Literal["LEFT", "RIGHT"]
SIDES: dict[Side, int] = {"LEFT": 1, "RIGHT": -1}
"""Both sides, and the sign of y there."""
LAYOUT = ONEX_LAYOUT
JOINTS = LAYOUT.names[:21]
INDEX = {name: i for i, name in enumerate(LAYOUT.names)}
FINGERS = tuple(f"{side}_{finger}" for side in SIDES for finger in ("INDEX", "MIDDLE", "RING", "THUMB"))
FINGER_CLOSED = 1.4
"""Angle of a closed finger in rad; the angle of an open one is 0."""
CAMERA = "HEAD_CAMERA"


def arm_slice(side: Side) -> slice:
    """Where the seven joints of an arm are in a state or a command."""
    start = INDEX[f"{side}_SHOULDER_PITCH"]
    return slice(start, start + 7)


def neutral() -> Float32[np.ndarray, "25"]:
    """A pose to begin from, as a command: knees bent, leaning over, hands in view, standing still."""
    command = np.zeros(25, dtype=np.float32)
    trunk = [INDEX[name] for name in ("HIP_PITCH", "KNEE_PITCH", "ANKLE_PITCH", "NECK_PITCH")]
    command[trunk] = -0.62, 0.9, -0.45, 0.42
    for side, sign in SIDES.items():
        command[arm_slice(side)] = -0.75, 0.15 * sign, 0, -1.3, 0, 0, 0
    return command
