"""The robot's behaviour: a command for every frame, from a seed.

Trunk, neck and base sway all the time. Each arm follows minimum-jerk moves from goal to goal, alone or together with
the other. Inverse kinematics turns a goal in space into joint angles for the time of arrival, including the sway.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from numpy.random import Generator

from worldline.twin.scene import INDEX, JOINTS, SIDES, Side, arm_slice, neutral
from worldline.twin.simulation import Simulation

REACH_TOLERANCE = 0.06
"""A goal that stays farther than this from the hand, in m, is out of reach and is replaced by another."""
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
    """A minimum-jerk move, of one arm (seven joint angles in rad and the closure of the hand, 0..1) or of more."""

    start: Float64[np.ndarray, " n"]
    goal: Float64[np.ndarray, " n"]
    begin: float
    """Time in s; so is the duration."""
    duration: float

    def at(self, time: float) -> Float64[np.ndarray, " n"]:
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


def to_world(point: Point, base: Point) -> Point:
    """A point given from a base at `(x, y, heading)` in the world."""
    cos, sin = np.cos(base[2]), np.sin(base[2])
    x, y, z = point
    return np.array([base[0] + cos * x - sin * y, base[1] + sin * x + cos * y, z])


def random_temper(rng: Generator) -> tuple[Sway, float, float]:
    """Draw how the robot of an episode moves: at the table (80 %), looking around (10 %) or driving around (10 %).

    Trunk and base carry the camera and move far less than the arms, which should change the image more than the head.
    Returns the sway (sines of 0.2 to 0.4 Hz and weaker ones of 0.5 to 0.8 Hz), the probability that both arms begin
    something together, and the duration of moves relative to the usual one.
    """
    trunk = [*range(INDEX["HIP_YAW"], INDEX["ANKLE_PITCH"] + 1), INDEX["NECK_PITCH"]]
    amplitude = np.zeros(25)
    amplitude[trunk] = rng.uniform(
        (0.004, 0.002, 0.002, 0.002, 0.001, 0.001, 0.003), (0.015, 0.006, 0.008, 0.008, 0.003, 0.004, 0.01)
    )
    velocities = rng.uniform((0.002, 0.004), (0.008, 0.015))
    mood = rng.choice(["work", "look", "drive"], p=[0.8, 0.1, 0.1])
    if mood == "look":
        amplitude[[INDEX["HIP_YAW"], INDEX["NECK_PITCH"]]] = rng.uniform((0.12, 0.06), (0.22, 0.1))
    if mood == "drive":
        velocities = rng.uniform((0.06, 0.1), (0.12, 0.2))
    together, pace = rng.uniform((0.2, 0.55), (0.7, 0.85))
    amplitude[-2:] = velocities
    frequency = np.stack([rng.uniform(0.2, 0.4, 25), rng.uniform(0.5, 0.8, 25)])
    return Sway(amplitude, frequency, phase=rng.uniform(0, 2 * np.pi, (2, 25))), together, pace


class Behaviour:
    """The robot's own commands: reset the simulation to `first()`, then step it by `command()`."""

    def __init__(self, simulation: Simulation, rng: Generator) -> None:
        self._simulation, self._rng = simulation, rng
        self._table_top = simulation.scene.table_top
        self._sway, self._together, self._pace = random_temper(rng)
        self._time = 0.0
        # Activities of the arms, and their relative frequency.
        self._activities = {self._push: 3.0, self._sweep: 2.0, self._wave: 3.0, self._hover: 2.0}
        self._agendas: dict[Side, deque[Waypoint]] = {side: deque() for side in SIDES}
        self._moves: dict[Side, Move] = {side: self._raised(side) for side in SIDES}

    def first(self) -> Float32[np.ndarray, "25"]:
        """The pose to begin in: both hands above the table."""
        return self._pose(0.0)

    def command(self) -> Float32[np.ndarray, "25"]:
        """The command for the next frame. New goals are set by where the objects are now."""
        self._time += 1 / self._simulation.fps
        for side, move in self._moves.items():
            if self._time >= move.begin + move.duration:
                self._moves[side] = self._next_move(side)
        return self._pose(self._time)

    def _pose(self, time: float) -> Float32[np.ndarray, "25"]:
        command = neutral() + self._sway.at(time)
        for side, move in self._moves.items():
            pose = move.at(time)
            command[arm_slice(side)], command[INDEX[f"{side}_HAND_CLOSURE"]] = pose[:7], pose[7]
        command[: len(JOINTS)] = np.clip(command[: len(JOINTS)], self._simulation.low, self._simulation.high)
        return command.astype(np.float32)

    def _base_at(self, time: float) -> Point:
        """Where the base will be: its place now, moved by the velocities that it will get."""
        x, y, heading = self._simulation.base()
        step = 1 / self._simulation.fps
        for t in np.arange(self._time, time, step):
            speed, turn = self._sway.at(t)[-2:]
            heading += turn * step
            x += speed * step * np.cos(heading)
            y += speed * step * np.sin(heading)
        return np.array([x, y, heading])

    def _raised(self, side: Side) -> Move:
        """The arm's first pause, above the table."""
        angles, _ = self._simulation.reach(side, self._hover_point(side), neutral(), np.zeros(3))
        pose = np.append(angles, self._rng.uniform(0, 1))
        return Move(pose, pose, begin=0.0, duration=self._rng.uniform(0.01, 0.25))

    def _next_move(self, side: Side) -> Move:
        """The move to the arm's next waypoint; where that is out of reach, to another point in view."""
        if not self._agendas[side]:
            self._new_activity(side)
        where, duration, closure = self._agendas[side].popleft()
        before, arrival = self._moves[side].goal, self._time + duration
        if len(where) != 7:
            target, base, command = where, self._base_at(arrival), self._pose(arrival)
            command[arm_slice(side)] = 0.5 * before[:7] + 0.5 * neutral()[arm_slice(side)]
            where, distance = self._simulation.reach(side, target, command, base)
            if distance > REACH_TOLERANCE:
                self._agendas[side].clear()
                where, _ = self._simulation.reach(side, to_world(self._hover_point(side), base), command, base)
        return Move(before, np.append(where, closure), begin=self._time, duration=duration)

    def _new_activity(self, side: Side) -> None:
        weights = np.array(list(self._activities.values()))
        activity = list(self._activities)[self._rng.choice(len(weights), p=weights / weights.sum())]
        self._agendas[side].extend(activity(side))
        other: Side = "RIGHT" if side == "LEFT" else "LEFT"
        if not self._agendas[other] and self._rng.random() < self._together:
            self._agendas[other].extend(activity(other))

    def _push(self, side: Side) -> list[Waypoint]:
        """Beside an object on the table, then through where it stands, then up. Sweep if there is none."""
        base, sign = self._simulation.base(), SIDES[side]
        x, y, z = self._simulation.objects().T - [[base[0]], [base[1]], [0]]
        ahead = np.stack([np.cos(base[2]) * x + np.sin(base[2]) * y, np.cos(base[2]) * y - np.sin(base[2]) * x, z], 1)
        near = [(x, y, z) for x, y, z in ahead if z > self._table_top and 0.2 < x < 0.8 and -0.15 < sign * y < 0.5]
        if not near:
            return self._sweep(side)
        target = np.array(near[self._rng.integers(len(near))])
        angle = sign * self._rng.uniform(-0.35, 1.9)  # 0 pushes straight away, more also towards the other side
        direction = np.array([np.cos(angle), -np.sin(angle), 0.0])
        height = np.array([0, 0, self._rng.uniform(0.0, 0.05)])
        before = target - 0.15 * direction + height
        after = target + self._rng.uniform(0.06, 0.16) * direction + height
        above, away = before + np.array([-0.02, 0, 0.12]), after + np.array([-0.08, 0, 0.2])
        closure = float(self._rng.choice([0.1, 0.9]))
        path = [(above, 0.55), (before, 0.3), (after, 0.45), (away, 0.4)]
        return [self._to(point, duration, closure) for point, duration in path]

    def _sweep(self, side: Side) -> list[Waypoint]:
        """From the outside across the table, low, and up again."""
        x, low = self._rng.uniform(0.46, 0.62), self._table_top + self._rng.uniform(0.07, 0.13)
        outside, inside = SIDES[side] * self._rng.uniform((0.38, -0.05), (0.5, 0.1))
        path = [((x - 0.05, outside, low + 0.08), 0.6), ((x, inside, low), 0.75), ((x, inside, low + 0.25), 0.45)]
        return [self._to(np.array(point), duration) for point, duration in path]

    def _wave(self, side: Side) -> list[Waypoint]:
        """Raise the hand in front of the camera and swing it from side to side."""
        sign, arm = SIDES[side], arm_slice(side)
        raised = np.array([-1.1, 0.2 * sign, -0.2 * sign, -1.5, 0.0, 0.0, 0.0]) + self._rng.uniform(-0.15, 0.15, 7)
        swing = np.array([0.0, 0.15 * sign, -0.45 * sign, 0.0, -0.2 * sign, 0.0, -0.3 * sign])
        low, high = self._simulation.low[arm], self._simulation.high[arm]
        out, back = (np.clip(raised + part * swing, low, high) for part in (1.0, -0.6))
        path = [(out, 0.6, 0.1), (back, 0.45, 0.6), (out, 0.45, 0.1), (back, 0.45, 0.6)]
        return [Waypoint(pose, time * self._pace, closure) for pose, time, closure in path]

    def _hover(self, side: Side) -> list[Waypoint]:
        return [self._to(self._hover_point(side), 0.7)]

    def _hover_point(self, side: Side) -> Point:
        """Somewhere above the table, as seen from the base."""
        x, y, z = self._rng.uniform((0.42, 0.02, self._table_top + 0.22), (0.6, 0.36, self._table_top + 0.5))
        return np.array([x, SIDES[side] * y, z])

    def _to(self, point: Point, duration: float, closure: float | None = None) -> Waypoint:
        """A waypoint at a point as seen from where the base is now."""
        closure = self._rng.uniform(0, 1) if closure is None else closure
        where = to_world(point, self._simulation.base())
        return Waypoint(where, duration * (self._pace * self._rng.uniform(0.85, 1.15)), closure)
