"""What would have happened: futures of one start under other commands, executed in the twin's physics.

`other_arms` gives other commands for a recorded future: the same trunk and base, other moves of the arms.
`touch_or_miss` looks for a start at which one command makes the hand push an object, and nearly the same command passes
it by. Every future is executed from the same snapshot, so all of them share their context to the last bit, and physics,
not the plan, says what was touched, moved or toppled. All is a function of snapshot, settings and random numbers.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from numpy.random import Generator

from worldline.twin.behaviour import REACH_TOLERANCE, Move, Point, to_world
from worldline.twin.scene import INDEX, JOINTS, SIDES, Side, arm_slice, neutral
from worldline.twin.simulation import REGIONS, Simulation

MOVED, TILTED = 0.03, np.deg2rad(30)
"""An object is pushed where it ends at least so many m from its start, and toppled where it is tilted so many rad."""
LEFT_ALONE = 0.005
"""And all are missed where nothing is touched and nothing on the table ends farther than so many m from its start."""
SEVERITIES = (0.03, 0.06, 0.09, 0.12, 0.16, 0.2, 0.25)
"""How far a miss is moved away from what touches, in m; the first with which physics finds no touch is taken."""
MISSES = ("short", "over", "left", "right")
"""Where the hand goes instead: not as far as the object, over it, or past it on one side."""
SEEN, CHANGE = 20, 10
"""A push is seen where at least so many pixels of objects, over all frames, differ by more than so many grey levels."""
FOLDED = np.array([-0.4, 0.25, 0.0, -2.0, 0.0, 0.0, 0.0])
"""A left arm that is held clear of the table, in rad."""
RISE, REST, SPEED = 0.6, 4.0, 0.01
"""Seconds in which the arms rise before an approach; seconds after which it is given up that everything comes to rest;
and the speed in m/s below which an object is at rest."""
APPROACH = ((0.5, 0.12), (0.4, 0.0))
"""The moves to beside the object: duration in s, and height in m above the place from where it is pushed."""
PUSH, AWAY = 0.6, 0.5
"""Longest durations in s of a push and of the move away from it, where the future is long enough for both."""
ASIDE = 0.4
"""Share of a push's time in which a hand that passes first moves aside."""


@dataclass(frozen=True, kw_only=True)
class Future:
    """What followed a start: what was commanded, measured and seen, and what physics says of the objects."""

    kind: str = "other"
    """`recorded`, `other`, `touch`, or one of `MISSES`."""
    severity: float = 0.0
    """Of a miss: how far it was moved away from what touches, in m."""
    commands: Float32[np.ndarray, "t 25"]
    states: Float32[np.ndarray, "t 25"]
    """Measured after each command."""
    frames: UInt8[np.ndarray, "f h w 3"]
    """After those commands that were to be shown."""
    regions: UInt8[np.ndarray, "g h w"]
    """What the pixels of these frames show (`REGIONS`), if they are segmented."""
    touched: Bool[np.ndarray, " n"]
    """Which objects the robot touched."""
    moved: Float64[np.ndarray, " n"]
    """How far each ended from its start, in m."""
    tilted: Float64[np.ndarray, " n"]
    """By how much each ended tilted against its start, in rad."""
    on_table: Bool[np.ndarray, " n"]
    """Which were on the table at the start; what lies on the floor may roll by itself."""

    @property
    def succeeded(self) -> bool:
        """The robot touched an object that then was pushed or toppled."""
        return bool((self.touched & ((self.moved >= MOVED) | (self.tilted >= TILTED))).any())

    @property
    def missed(self) -> bool:
        """The robot touched nothing, and everything on the table stayed."""
        return not self.touched.any() and bool((self.moved[self.on_table] < LEFT_ALONE).all())


@dataclass(frozen=True, kw_only=True)
class TouchOrMiss:
    """One context, and what followed it: a touch, and near misses. Their frames show the same times."""

    snapshot: Float64[np.ndarray, " p"]
    """The physics at the last frame of the context."""
    frames: UInt8[np.ndarray, "c h w 3"]
    states: Float32[np.ndarray, "c 25"]
    touch: Future
    misses: tuple[Future, ...]


class _Reach(NamedTuple):
    """One push: from where, to where, with which hand."""

    side: Side
    before: Point
    after: Point
    direction: Point
    closure: float


def execute(
    simulation: Simulation,
    snapshot: Float64[np.ndarray, " p"],
    commands: Float32[np.ndarray, "t 25"],
    *,
    shown: Collection[int] = (),
    segmented: bool = True,
    untouched: bool = False,
    **what: Any,
) -> Future:
    """Restart the physics and drive it by commands. Frames are drawn after those commands whose places are `shown`.

    Their regions are left out if they shall not be `segmented`. It ends early where something is touched and all were
    to be `untouched`. `what`: kind and severity of the future.
    """
    simulation.restore(snapshot)
    places, turns = simulation.objects(), simulation.turns()
    states, size = np.empty_like(commands), simulation.size
    touched, seen, kinds = np.zeros((2, len(places)), dtype=bool), [], []
    for i, command in enumerate(commands):
        simulation.step(command, touched=touched)
        states[i] = simulation.state()
        if i in shown:
            seen.append(simulation.frame())
            if segmented:
                kinds.append(simulation.regions())
        if untouched and touched.any():
            break
    upright = np.einsum("nij,nij->ni", simulation.turns(), turns)[:, 2]  # of R_now R_start^T the entry (z, z)
    return Future(
        **what,
        commands=commands,
        states=states,
        frames=np.array(seen, np.uint8).reshape(-1, size, size, 3),
        regions=np.array(kinds, np.uint8).reshape(-1, size, size),
        touched=touched[1],
        moved=np.linalg.norm(simulation.objects() - places, axis=1),
        tilted=np.arccos(np.clip(upright, -1, 1)),
        on_table=_on_table(simulation, places),
    )


def other_arms(
    simulation: Simulation, commands: Float32[np.ndarray, "t 25"], rng: Generator
) -> Float32[np.ndarray, "t 25"]:
    """Other commands for a future that begins now: both arms go to drawn points above the table, one after another.

    Trunk, neck, base and hands do as in `commands`. The arms leave the commanded path within 0.3 s without a jerk, so
    that both futures begin with the same motion.
    """
    other, times = commands.copy(), np.arange(len(commands)) / simulation.fps
    leaving = np.clip(times / 0.3, 0, 1)
    share = (leaving**3 * (10 - 15 * leaving + 6 * leaving**2))[:, None]
    base, table_top = simulation.base(), simulation.scene.table_top
    for side, sign in SIDES.items():
        arm, path, time = arm_slice(side), np.empty((len(commands), 7)), 0.0
        at = commands[0, arm].astype(np.float64)
        while time <= times[-1]:
            x, y, z = rng.uniform((0.42, 0.02, table_top + 0.1), (0.6, 0.36, table_top + 0.5))
            posture, duration = commands[0].copy(), rng.uniform(0.45, 0.65)
            posture[arm] = 0.5 * at + 0.5 * neutral()[arm]
            goal, _ = simulation.reach(side, to_world(np.array([x, sign * y, z]), base), posture, base)
            now = times >= time
            move = Move(np.append(at, 0.0), np.append(goal, 0.0), begin=time, duration=duration)
            path[now] = [move.at(t)[:7] for t in times[now]]
            at, time = goal, time + duration
        other[:, arm] = (1 - share) * commands[:, arm] + share * path
    other[:, : len(JOINTS)] = np.clip(other[:, : len(JOINTS)], simulation.low, simulation.high)
    return other


def touch_or_miss(
    simulation: Simulation,
    command: Float32[np.ndarray, "25"],
    rng: Generator,
    *,
    context: int,
    horizon: int,
    shown: Collection[int],
    most: int = 2,
    tries: int = 10,
) -> TouchOrMiss | None:
    """A start near the present one, from which one command pushes or topples an object, and others just miss it.

    The hand first goes beside an object; the `context` frames end there, before any touch. Then it moves through the
    object, or to a place that is displaced by as little as leaves everything alone.

    Args:
        command: what is commanded now. Trunk, neck and hands keep to it; the base stops, and both arms first go up.
        context: frames of the context.
        horizon: frames of every future.
        shown: places in it of the frames to show.
        most: misses to keep, in a drawn order of `MISSES`.
        tries: drawn pushes after which it gives up.

    Returns:
        None where no push was found that physics confirms and at least `SEEN` pixels show.
    """
    rest = _rested(simulation, command)
    snapshot = simulation.snapshot()
    for _ in range(tries):
        simulation.restore(snapshot)
        found = _attempt(simulation, rest, rng, (context, horizon, most), sorted(shown))
        if found is not None:
            return found
    return None


def object_pixels(
    first: UInt8[np.ndarray, "f h w"], second: UInt8[np.ndarray, "f h w"], *, margin: int = 1
) -> Bool[np.ndarray, "f h w"]:
    """Pixels that show an object in either of two futures, and the robot in neither, nor next to them.

    They tell whether an object was pushed without a look at the arm, which differs anyway. `margin` is the distance to
    the robot in pixels, because a forecast's arm may be a little elsewhere.
    """
    robot, objects = ((first == REGIONS.index(name)) | (second == REGIONS.index(name)) for name in ("robot", "objects"))
    height, width = robot.shape[1:]
    padded, near = np.pad(robot, ((0, 0), (margin, margin), (margin, margin))), np.zeros_like(robot)
    for down in range(2 * margin + 1):
        for right in range(2 * margin + 1):
            near |= padded[:, down : down + height, right : right + width]
    return objects & ~near


def _attempt(
    simulation: Simulation, rest: np.ndarray, rng: Generator, sizes: tuple[int, int, int], shown: list[int]
) -> TouchOrMiss | None:
    """Draw one push and try it, its misses, and whether it can be seen. `sizes`: context, horizon, most misses."""
    context, horizon, most = sizes
    options: list[tuple[Side, int]] = [(side, number) for side in SIDES for number in simulation.near(side)]
    if not options:
        return None
    side, number = options[rng.integers(len(options))]
    plan, base = _drawn(simulation, side, simulation.objects()[number], rng), simulation.base()
    approach = _approach(simulation, rest, plan, base, context)
    kinds = rng.permutation(MISSES).tolist()
    if approach is None:
        return None
    for command in approach[: len(approach) - context + 1]:
        simulation.step(command)
    first = simulation.snapshot()
    closer = execute(simulation, first, approach[len(approach) - context + 1 :], untouched=True)
    if not closer.missed:
        return None
    start = simulation.snapshot()

    def tried(kind: str, severity: float = 0.0, **how: Any) -> Future | None:
        commands = _pushed(simulation, approach[-1], plan, kind, severity, horizon, base)
        return None if commands is None else execute(simulation, start, commands, kind=kind, severity=severity, **how)

    touch = tried("touch")
    if touch is None or not (touch.succeeded and touch.touched[number]):
        return None
    touch, misses = execute(simulation, start, touch.commands, kind=touch.kind, shown=shown), list[Future]()
    for kind in kinds:
        miss = next((tried(kind, size, shown=shown) for size in SEVERITIES if _misses(tried, kind, size)), None)
        if miss is not None and _seen(touch, miss):
            misses.append(miss)
        if len(misses) == most:
            break
    if not misses:
        return None
    frames, states = _context(simulation, first, approach[len(approach) - context + 1 :])
    return TouchOrMiss(snapshot=start, frames=frames, states=states, touch=touch, misses=tuple(misses))


def _misses(tried: Callable[..., Future | None], kind: str, severity: float) -> bool:
    """Whether a displaced push leaves everything alone; nothing is drawn."""
    future = tried(kind, severity, untouched=True)
    return future is not None and future.missed


def _on_table(simulation: Simulation, places: Float64[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    return places[:, 2] > simulation.scene.table_top - 0.02


def _rested(simulation: Simulation, command: np.ndarray) -> Float32[np.ndarray, "25"]:
    """Stop the base, raise the arms, let everything come to rest; the command that holds it so."""
    rest, frames = command.copy(), round(RISE * simulation.fps)
    rest[INDEX["LINEAR_VELOCITY"] :] = 0
    for side, sign in SIDES.items():
        rest[arm_slice(side)] = FOLDED * np.array([1, sign, sign, 1, sign, 1, sign])
    move = Move(command.astype(np.float64), rest.astype(np.float64), begin=0.0, duration=float(frames))
    for i in range(round(REST * simulation.fps)):
        before = simulation.objects()
        simulation.step(move.at(i + 1.0).astype(np.float32))
        step = np.linalg.norm(simulation.objects() - before, axis=1)[_on_table(simulation, before)]
        if i >= frames and (step * simulation.fps < SPEED).all():
            break
    return rest


def _drawn(simulation: Simulation, side: Side, target: Point, rng: Generator) -> _Reach:
    """Draw from where and to where an object is pushed: away from the robot, or towards its other side."""
    angle = simulation.base()[2] - SIDES[side] * rng.uniform(-0.35, 1.9)
    direction = np.array([np.cos(angle), np.sin(angle), 0.0])
    low = target + np.array([0, 0, rng.uniform(0.0, 0.05)])
    before, after = low - rng.uniform(0.15, 0.2) * direction, low + rng.uniform(0.02, 0.1) * direction
    return _Reach(side, before, after, direction, float(rng.choice([0.1, 0.9])))


def _approach(
    simulation: Simulation, rest: np.ndarray, plan: _Reach, base: np.ndarray, context: int
) -> Float32[np.ndarray, "n 25"] | None:
    """Commands that bring the hand beside the object, at least as many as a context needs. None if out of reach."""
    fps = simulation.fps
    commands = np.repeat(rest[None], max(0, context - sum(round(time * fps) for time, _ in APPROACH)), axis=0)
    for duration, height in APPROACH:
        point = plan.before + np.array([0, 0, height])
        more = _moved(simulation, commands[-1] if len(commands) else rest, plan, point, round(duration * fps), base)
        if more is None:
            return None
        commands = np.concatenate([commands, more])
    return commands


def _pushed(
    simulation: Simulation, last: np.ndarray, plan: _Reach, kind: str, severity: float, frames: int, base: np.ndarray
) -> Float32[np.ndarray, "t 25"] | None:
    """Commands of a touch or a miss and, if there is time, of the move away. None if out of reach."""
    across = np.array([-plan.direction[1], plan.direction[0], 0.0])  # to the left of the direction
    ways = {"short": -plan.direction, "over": np.array([0, 0, 1.0]), "left": across, "right": -across}
    way = severity * ways.get(kind, np.zeros(3))
    push = min(round(0.7 * frames), round(PUSH * simulation.fps))
    aside, away = round(ASIDE * push), min(frames - push, round(AWAY * simulation.fps))
    goal, last = plan.after + way, last[None]
    moves = [(goal, push)] if kind in ("touch", "short") else [(plan.before + way, aside), (goal, push - aside)]
    if frames > 2 * push:  # else it ends where it pushes
        moves.append((goal - 0.1 * plan.direction + np.array([0, 0, 0.2]), away))
    commands = last[:0]
    for point, duration in moves:
        more = _moved(simulation, (commands if len(commands) else last)[-1], plan, point, duration, base)
        if more is None:
            return None
        commands = np.concatenate([commands, more])
    return np.concatenate([commands, np.repeat(commands[-1:], frames - len(commands), axis=0)])


def _moved(
    simulation: Simulation, last: np.ndarray, plan: _Reach, point: Point, frames: int, base: np.ndarray
) -> Float32[np.ndarray, "n 25"] | None:
    """Commands of one move of the arm from the last command to a point. None where the hand cannot get there."""
    arm, hand = arm_slice(plan.side), INDEX[f"{plan.side}_HAND_CLOSURE"]
    posture = last.copy()
    posture[arm] = 0.5 * last[arm] + 0.5 * neutral()[arm]
    goal, distance = simulation.reach(plan.side, point, posture, base)
    if distance > REACH_TOLERANCE:
        return None
    move = Move(np.append(last[arm], last[hand]), np.append(goal, plan.closure), begin=0.0, duration=float(frames))
    commands = np.repeat(last[None], frames, axis=0)
    for i in range(frames):
        pose = move.at(i + 1.0)
        commands[i, arm], commands[i, hand] = pose[:7], pose[7]
    return commands


def _context(
    simulation: Simulation, snapshot: np.ndarray, commands: np.ndarray
) -> tuple[UInt8[np.ndarray, "c h w 3"], Float32[np.ndarray, "c 25"]]:
    """What is seen and measured from a snapshot on, also at it."""
    simulation.restore(snapshot)
    seen = [simulation.observe()]
    for command in commands:
        simulation.step(command)
        seen.append(simulation.observe())
    frames, states = (np.stack(part) for part in zip(*seen, strict=True))
    return frames, states


def _seen(touch: Future, miss: Future) -> bool:
    """Whether enough pixels of objects differ between both, away from the robot."""
    change = np.abs(touch.frames.astype(np.int16) - miss.frames).max(axis=-1)
    return int(((change > CHANGE) & object_pixels(touch.regions, miss.regions)).sum()) >= SEEN
