"""Tasks of the twin as environments: where they start, and what physics says of success and of how far it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from worldline.envs.observation import Look
from worldline.envs.starts import Begun
from worldline.envs.transition import Transition
from worldline.forecasting.forecaster import Forecaster, Session
from worldline.forecasting.live import LiveTwin
from worldline.formats.limits import StateLimits, wide_enough
from worldline.schema import Clip, UsageError, stack
from worldline.twin.scene import INDEX, JOINTS, LAYOUT, neutral
from worldline.twin.simulation import Simulation
from worldline.twin.tasks import TASKS, Start

SEEDS = range(1000)
"""Starts of a task, where no others are given."""
_SPEEDS = {"LINEAR_VELOCITY": 0.3, "ANGULAR_VELOCITY": 0.5}
"""Of the twin's base, m/s and rad/s, forwards and backwards."""
_CHANGE = 2.5
"""How far the twin's entries change in a second: rad of a joint, which its motors follow, and a closure twice over."""


@dataclass(frozen=True, kw_only=True)
class TaskStarts:
    """Starts of a task, by their seeds: the same in the live twin and in a world, to the last bit on one machine."""

    task: str
    fps: float
    size: int
    """Of the pictures, in pixels."""
    numbers: Sequence[int] = SEEDS

    def limits(self) -> StateLimits:
        with self._start(self.numbers[0]).open(size=2) as simulation:
            return limits_of_twin(simulation, fps=self.fps)

    def begin(self, forecaster: Forecaster, numbers: Sequence[int], seeds: Sequence[int]) -> list[Begun]:
        count, starts = forecaster.context_frames, [self._start(number) for number in numbers]
        unread = isinstance(forecaster, LiveTwin)
        clips = [_context(self.task, number, self.fps, count, self.size, unread) for number in numbers]
        sessions = forecaster.start_clips(stack(clips), seed=seeds).part()
        return [
            Begun(session=session, look=self._look(number, count), state=clip.states[-1].numpy(), command=start.command)
            for session, number, clip, start in zip(sessions, numbers, clips, starts, strict=True)
        ]

    def _start(self, number: int) -> Start:
        return TASKS[self.task].start(number, fps=self.fps)

    def _look(self, number: int, count: int) -> Look:
        def frames():
            clip = _context(self.task, number, self.fps, count, self.size, False)
            assert clip.frames is not None, "drawn"
            return clip.frames

        return Look(frames)


def limits_of_twin(simulation: Simulation, *, fps: float) -> StateLimits:
    """Those of the twin: of its joints in rad, hands open and closed, and its speeds."""
    lowest, highest = np.zeros(LAYOUT.dim, np.float32), np.ones(LAYOUT.dim, np.float32)
    lowest[: len(JOINTS)], highest[: len(JOINTS)] = simulation.low, simulation.high
    for name, speed in _SPEEDS.items():
        lowest[INDEX[name]], highest[INDEX[name]] = -speed, speed
    change = np.full(LAYOUT.dim, _CHANGE / fps, np.float32)
    return wide_enough(LAYOUT.names, np.minimum(lowest, neutral()), np.maximum(highest, neutral()), change)


@lru_cache(maxsize=64)
def _context(task: str, seed: int, fps: float, count: int, size: int, unread: bool) -> Clip:
    """The context of a start, kept for when it is begun again; `unread` spares drawing it."""
    return TASKS[task].start(seed, fps=fps).clip(count, size=size, black=unread)


def live_of(session: Session) -> LiveTwin:
    """The live twin of a session. Raises `UsageError` for one inside a world, whose physics nobody knows."""
    if not isinstance(session.forecaster, LiveTwin):
        raise UsageError("only the live twin knows physics; inside a world give a classifier (success=...)")
    return session.forecaster


@dataclass(frozen=True)
class Physics:
    """Whether the episode of a task has ended so, by physics: a `success` or a `failure` of an environment."""

    outcome: Literal["succeeded", "failed"]

    def __call__(self, transition: Transition) -> bool:
        return live_of(transition.session).outcomes(transition.session)[0] == self.outcome


def distance(session: Session) -> float:
    """From the hand of a task to the object that it is to handle, in m."""
    live = live_of(session)
    (start,) = live.starts(session)
    if start is None:
        raise UsageError("this episode began in recorded physics and has no task; start it with TaskStarts")
    simulation = live.simulation_of(session)
    return float(np.linalg.norm(simulation.hand(start.side) - simulation.objects()[0]))


def near(transition: Transition) -> float:
    """A reward for learning: 1 at success, less the distance in m from the hand to the object, at every step."""
    return float(Physics("succeeded")(transition)) - distance(transition.session)


REWARDS = {"success": None, "distance": near}
"""By name; that of success is what environments give where no reward is given."""
