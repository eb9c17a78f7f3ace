"""Scripted policies of known order: open loop from what is known at the start, with stated aim errors.

They know where things are at the start, and look at nothing afterwards. So they do the same in the twin and in a world,
whatever this shows, and a policy that aims better is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from worldline.checks import Checked, Positive, Seed
from worldline.policies.policy import BatchPolicy, checked_states
from worldline.schema import UsageError
from worldline.twin.behaviour import Move
from worldline.twin.scene import INDEX, LAYOUT, arm_slice
from worldline.twin.tasks import Start, solve

Motion = Literal["solve", "nothing", "wave"]
RAISED = np.array([-1.2, 0.6, 0.0, -1.7, 0.0, 0.0, 0.0])
"""The left arm with its hand beside the head, in rad."""
RISE, WAVE, SWING = 0.8, 1.0, 0.4
"""Seconds until the hand is up; waves per second; their amplitude in rad."""


@dataclass(frozen=True, kw_only=True)
class ScriptedConfig(Checked):
    """A scripted policy."""

    kind: Literal["scripted"] = "scripted"
    motion: Motion = "solve"
    """Solve the task, hold still, or wave with the left hand."""
    miss: float = 0.0
    """Aim error in m of `solve`; its direction is drawn for every episode: beside, too short or too high."""
    seed: Seed = 0
    """Of the directions."""
    fps: Positive = 15.0


class ScriptedPolicy(BatchPolicy):
    """Plays a path of commands that is fixed when the episode begins."""

    @property
    def looks_now(self) -> bool:
        return False

    def __init__(self, config: ScriptedConfig) -> None:
        self.config, self.fps, self.needs_start = config, config.fps, config.motion == "solve"
        self._rows: int | None = None

    def reset_batch(self, seeds: Sequence[int], starts: Sequence[Any] | None = None) -> None:
        if self.needs_start and (starts is None or len(starts) != len(seeds)):
            raise UsageError(
                "this policy is scripted: it must be told the start, reset(seed, start), one for each seed"
            )
        self._rows, self._time = len(seeds), 0
        self._first: np.ndarray | None = None
        self._paths = [self._path(*one) for one in zip(seeds, starts or (), strict=True)] if self.needs_start else []

    def act_batch(self, observations: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "n s"]:
        dim = self._paths[0].shape[-1] if self._paths else np.shape(observations["state"])[-1]
        states = checked_states(observations, self._rows, dim)
        self._first, self._time = states if self._first is None else self._first, self._time + 1
        if self._paths:
            return np.stack([path[min(self._time, len(path)) - 1] for path in self._paths])
        held = self._first.copy()
        if dim == LAYOUT.dim:
            held[:, INDEX["LINEAR_VELOCITY"] :] = 0
        return _waving(held, self._time / self.fps) if self.config.motion == "wave" else held

    def _path(self, seed: int, start: Any) -> Float32[np.ndarray, "t 25"]:
        if not isinstance(start, Start):
            raise UsageError(f"a scripted policy is told a worldline.twin.tasks.Start, not a {type(start).__name__}")
        return solve(start, miss=missed(start, self.config.miss, [self.config.seed, seed]))


def missed(start: Start, size: float, seed: Sequence[int]) -> tuple[float, float, float]:
    """An aim error of this size in m, in the robot's frame: in a drawn direction across or against the last move.

    Farther along it would be no error: whoever pushes too far has pushed.
    """
    rng = np.random.default_rng([*seed, start.seed, start.place])
    before, goal = (point.where for point in start.task.path(start)[-2:])
    ahead = (goal - before) / np.linalg.norm(goal - before)
    left, up = np.array([-ahead[1], ahead[0], 0.0]), np.array([0.0, 0.0, 1.0])
    ways = rng.standard_normal(3)
    way = -abs(ways[0]) * ahead + ways[1] * left + abs(ways[2]) * up
    x, y, z = size * way / np.linalg.norm(way)
    return float(x), float(y), float(z)


def _waving(states: Float32[np.ndarray, "n 25"], time: float) -> Float32[np.ndarray, "n 25"]:
    """The left hand goes up and waves; all else stays."""
    if states.shape[-1] != LAYOUT.dim:
        raise UsageError(f"the twin waves, whose states have {LAYOUT.dim} numbers, not {states.shape[-1]}")
    arm = arm_slice("LEFT")
    commands = states.copy()
    swing = SWING * np.sin(2 * np.pi * WAVE * max(0.0, time - RISE))
    for row in commands:
        row[arm] = Move(row[arm].astype(np.float64), RAISED, begin=0.0, duration=RISE).at(time)
        row[INDEX["LEFT_ELBOW_YAW"]] += swing
    return commands
