"""The robot in a mirror: a demonstration with left and right exchanged is another one."""

import numpy as np
from jaxtyping import Float32

from worldline.twin.scene import INDEX, arm_slice

_ARM = np.array([1, -1, -1, 1, -1, 1, -1], dtype=np.float32)
"""Pitches keep their signs; rolls and yaws change them."""


def _mirrored() -> tuple[np.ndarray, np.ndarray]:
    """Where each entry of a mirrored state comes from, and with which sign."""
    order, signs = np.arange(len(INDEX)), np.ones(len(INDEX), dtype=np.float32)
    left, right = arm_slice("LEFT"), arm_slice("RIGHT")
    order[left], order[right] = np.arange(right.start, right.stop), np.arange(left.start, left.stop)
    signs[left] = signs[right] = _ARM
    hands = [INDEX[f"{side}_HAND_CLOSURE"] for side in ("LEFT", "RIGHT")]
    order[hands] = hands[::-1]
    signs[[INDEX[name] for name in ("HIP_YAW", "HIP_ROLL", "ANKLE_ROLL", "ANGULAR_VELOCITY")]] = -1
    return order, signs


ORDER, SIGNS = _mirrored()


def mirrored(states: Float32[np.ndarray, "*n 25"]) -> Float32[np.ndarray, "*n 25"]:
    """States or commands of the twin with left and right exchanged; a mirrored picture belongs to them."""
    return states[..., ORDER] * SIGNS
