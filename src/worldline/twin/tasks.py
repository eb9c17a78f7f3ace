"""Tasks at the table whose success physics knows, with starts that can be replayed, and motions that solve them.

A `Start` is made from (task, seed) alone: a room, settled physics after two seconds in which the robot only sways, the
pose that is commanded, and where things are. Success and failure are functions of a start and of what physics knows
(`Facts`). `solve` gives commands that solve a task open loop, or that fail by a stated aim error.
"""

from collections.abc import Callable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from numpy.random import Generator

from worldline.checks import refuse_unknown
from worldline.files import read_json, read_npz, write_npz
from worldline.schema import Clip, Origin, UsageError
from worldline.twin.behaviour import REACH_TOLERANCE, Move, Point, Sway, random_temper, to_world
from worldline.twin.scene import (
    INDEX,
    SIDES,
    Placing,
    Scene,
    Shape,
    Side,
    Things,
    arm_slice,
    body,
    neutral,
    random_scene,
    random_shape,
    stripe,
)
from worldline.twin.simulation import Simulation
from worldline.twin.trial import Facts, Trial

LEAD_IN = 2.0
"""Seconds before a start, in which the robot sways. Contexts are taken from them."""
ROOMS = 50
"""Rooms that are drawn for one start, at most."""
LINE, OBSTACLE = (0.95, 0.95, 0.9), (0.78, 0.12, 0.1)
"""Colours of the line and of the obstacle; objects to be handled are green to blue."""
STRIPE = (0.016, 0.24)
"""Half width and half length of the line, in m."""
TOPPLED = float(np.deg2rad(45))
"""Tilt in rad from which on a box has been knocked over."""
CALM = 0.015
"""Largest sway of a joint before a start, in rad. The base stands still."""
FIST = 0.95
"""Closure of the hand in its motions."""
Way = Literal["short", "over", "left", "right"]
WAYS: tuple[Way, ...] = get_args(Way)
"""Where a hand goes that fails; as the `MISSES` of counterfactuals."""
TaskId = Literal["touch", "push", "topple", "avoid"]
KEPT = 500_000
"""Seeds of starts below this are kept for policies (`worldline.policies.starts`): no recorded episode has one."""
ORIGIN = "twin task "
"""What the origin of a clip of a start begins with; the task's id follows."""
Outcome = Literal["open", "succeeded", "failed"]
Seen = TypeVar("Seen")
States = Float32[np.ndarray, "n 25"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where an episode of a task begins: now is frame 0. Points are in the robot's frame: x ahead, y left, z up, m.

    Made from (task, seed, fps) alone: the same on one machine to the last bit.
    """

    task: "Task"
    seed: int
    fps: float
    scene: Scene
    side: Side
    """The arm that is nearer to the object."""
    snapshot: Float64[np.ndarray, " p"]
    """The physics now."""
    command: Float32[np.ndarray, "25"]
    """What is commanded now; repeated, it holds the robot still."""
    object: Point
    """Middle of the object that is to be handled."""
    obstacle: Point | None
    line: float | None
    """How far ahead the middle of the line is; it runs across."""
    base: Point
    """Where the base is in the world: x and y in m, heading in rad."""
    turns: Float64[np.ndarray, "o 3 3"]
    """Rotations of the objects from their own axes into the world's."""
    before: Float64[np.ndarray, " p"]
    """The physics at the beginning of the lead-in."""
    lead_in: Float32[np.ndarray, "f 25"]
    """The commands that led here from there."""

    @classmethod
    def at(cls, place: int, seed: int, *, fps: float) -> "Start":
        """The start of the task at this place in `TASKS`."""
        return [*TASKS.values()][place].start(seed, fps=fps)

    @property
    def place(self) -> int:
        """Of its task in `TASKS`."""
        return [*TASKS].index(self.task.id)

    @property
    def frames(self) -> int:
        """Frames of an episode after its start."""
        return round(self.task.seconds * self.fps)

    def open(self, *, size: int = 128) -> Simulation:
        """The simulation, now. Close it after use."""
        simulation = Simulation(self.scene, size=size, fps=self.fps)
        simulation.restore(self.snapshot)
        return simulation

    def context(
        self, count: int, *, size: int = 128
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Float32[np.ndarray, "n 25"]]:
        """The last `count` frames and measured states up to now. Raises `UsageError` for more than the lead-in has."""
        frames, states = self._before(count, size, Simulation.frame)
        return np.stack(frames), states

    def _before(self, count: int, size: int, look: Callable[[Simulation], Seen]) -> tuple[list[Seen], States]:
        """What `look` gives of each of the last frames up to now, and the states."""
        if not 1 <= count <= len(self.lead_in) + 1:
            raise UsageError(f"a start knows 1 to {len(self.lead_in) + 1} frames of what was before, not {count}")
        seen, states, unseen = [], [], len(self.lead_in) + 1 - count
        with Simulation(self.scene, size=size, fps=self.fps) as simulation:
            simulation.restore(self.before)
            for i in range(len(self.lead_in) + 1):
                if i >= unseen:
                    seen.append(look(simulation))
                    states.append(simulation.state())
                if i < len(self.lead_in):
                    simulation.step(self.lead_in[i])
        return seen, np.stack(states)

    def clip(self, count: int, *, size: int = 128, black: bool = False) -> Clip:
        """The same as a clip, with which `LiveTwin` and any world can start a session (`Forecaster.start_clips`).

        Black frames are for the live twin, which does not read them; then nothing is drawn.
        """
        if black:
            frames, states = np.zeros((count, size, size, 3), np.uint8), self._before(count, 2, lambda _: None)[1]
        else:
            frames, states = self.context(count, size=size)
        return Clip(
            states=torch.from_numpy(states),
            fps=self.fps,
            origin=Origin(source=ORIGIN + self.task.id, episode=self.seed, start=0),
            frames=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(),
        )

    def outcome(self, facts: Facts) -> Outcome:
        """Whether the episode is over by now, and how. A failure counts before a success at the same frame."""
        if self.task.failed(self, facts):
            return "failed"
        return "succeeded" if self.task.succeeded(self, facts) else "open"


Judge = Callable[[Start, Facts], bool]


class Waypoint(NamedTuple):
    """Where the hand is to be next, in the robot's frame, and the time to get there in s."""

    where: Point
    duration: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: what lies on the table, what is to be done in how many seconds, and what physics calls success."""

    id: TaskId
    label: str
    sentence: str
    """What the robot is told."""
    seconds: float
    things: Placing = field(repr=False)
    path: Callable[[Start], list[Waypoint]] = field(repr=False)
    """Of the hand, from above and beside the object through what is to be done."""
    succeeded: Judge = field(repr=False)
    failed: Judge = field(repr=False, default=lambda start, facts: False)
    """Whether the episode is lost for good."""

    def start(self, seed: int, *, fps: float = 15.0) -> Start:
        """The start of this seed. Rooms in which the hand cannot get where it must are left.

        Raises `UsageError` where there is none in `ROOMS` rooms, or for a seed below 0.
        """
        return _start(self.id, seed, float(fps))


def start_of(origin: Origin, *, fps: float) -> Start | None:
    """The start that a clip of `Start.clip` begins at; None for a clip of something else. Raises what it raises."""
    if not origin.source.startswith(ORIGIN):
        return None
    task = origin.source.removeprefix(ORIGIN)
    refuse_unknown(task, TASKS, what="task")
    return TASKS[task].start(origin.episode, fps=fps)


def solve(
    start: Start,
    *,
    miss: tuple[float, float, float] = (0.0, 0.0, 0.0),
    late: float = 0.0,
    pace: float = 1.0,
    frames: int | None = None,
) -> Float32[np.ndarray, "n 25"]:
    """Commands that solve the task from its start, open loop, one for each frame.

    Args:
        miss: aim error in m, in the robot's frame: the hand goes that much farther, more to the left and higher. What
            of it is along the last move shortens or lengthens this; the rest displaces the whole path.
        late: seconds that the robot waits first.
        pace: durations relative to the usual ones.
        frames: how many; as long as an episode if not given. The last command is held.
    """
    frames = start.frames if frames is None else frames
    with start.open(size=2) as simulation:
        points = _missed(start.task.path(start), np.array(miss, np.float64))
        commands, _ = _moved(simulation, start, points, pace)
    waiting = np.repeat(start.command[None], round(late * start.fps), axis=0)
    commands = np.concatenate([waiting, commands])[:frames]
    return np.concatenate([commands, np.repeat(commands[-1:], frames - len(commands), axis=0)])


def aim_error(start: Start, way: Way, size: float) -> tuple[float, float, float]:
    """An error of `size` m for `solve`: the last move ends too short, or the hand goes over, left or right of its aim.

    Left and right are as seen in the direction of the last move; past an obstacle, right of a left hand is towards it.
    """
    *_, (before, _), (goal, _) = start.task.path(start)
    ahead = (goal - before) / np.linalg.norm(goal - before)
    left = np.array([-ahead[1], ahead[0], 0.0])
    ways: dict[Way, Point] = {"short": -ahead, "over": np.array([0, 0, 1.0]), "left": left, "right": -left}
    x, y, z = (size * ways[way]).tolist()
    return x, y, z


def attempt(start: Start, commands: Float32[np.ndarray, "n 25"]) -> tuple[Outcome, Facts]:
    """Execute commands from a start without looking; how the episode ends, and what physics knows then."""
    with start.open(size=2) as simulation:
        trial = Trial(simulation)
        for command in commands:
            trial.step(command)
            facts = trial.facts()
            if (outcome := start.outcome(facts)) != "open":
                return outcome, facts
        return "open", trial.facts()


# --- episodes on disk (`generate.TaskEpisodes`) ---


@dataclass(frozen=True, kw_only=True)
class Label:
    """What physics says of a recorded episode of a task, and how it was made."""

    task: str
    seed: int
    """Of its start."""
    begin: int
    """The frame of the recording at which the start is; those before are the robot's sway."""
    miss: tuple[float, float, float]
    """Aim error in m (`solve`)."""
    pace: float
    outcome: Outcome
    frame: int
    """The frame of the recording at which success or failure came; -1 where neither did."""

    @property
    def succeeded(self) -> bool:
        return self.outcome == "succeeded"


def label_file(root: Path, episode: int) -> Path:
    """Where the label of an episode lies."""
    return root / f"tasks/task_{episode}.npz"


def write_label(root: Path, episode: int, label: Label) -> None:
    """Write a label beside its episode, atomically."""
    write_npz(label_file(root, episode), asdict(label))


def labels(root: Path) -> list[Label]:
    """The labels of all episodes of a data set of tasks, in their order. Raises `DataError` where some are missing."""
    count = read_json(root / "metadata.json")["num_shards"]
    return [_label(label_file(root, episode)) for episode in range(count)]


def _label(path: Path) -> Label:
    saved = read_npz(path, what="what physics says of a task", fix="Generate the data set again (--tasks).")
    x, y, z = saved.pop("miss").tolist()
    return Label(miss=(x, y, z), **{name: value.item() for name, value in saved.items()})


# --- starts ---


@lru_cache(maxsize=256)
def _start(task: str, seed: int, fps: float) -> Start:
    if seed < 0:
        raise UsageError(f"the seed of a start is 0 or more, not {seed}")
    for room in range(ROOMS):
        rng = np.random.default_rng([seed, [*TASKS].index(task), room])
        found = _drawn(TASKS[task], seed, fps, rng)
        if found is not None:
            return found
    raise UsageError(f"no room for the task {task!r} was found with seed {seed}; take another seed")


def _drawn(task: Task, seed: int, fps: float, rng: Generator) -> Start | None:
    """One room; None where the hands cannot get to their places, or do not leave the things alone."""
    scene = random_scene(rng, "table", placing=task.things)
    with Simulation(scene, size=2, fps=fps) as simulation:
        simulation.reset()
        side: Side = "LEFT" if simulation.objects()[0, 1] > 0 else "RIGHT"
        pose, sway = _raised(simulation, rng), _sway(rng)
        if pose is None:
            return None
        commands = [pose + sway.at(i / fps).astype(np.float32) for i in range(round(LEAD_IN * fps) + 1)]
        simulation.reset(commands[0])
        before, touched = simulation.snapshot(), np.zeros((2, len(scene.objects)), dtype=bool)
        for command in commands[1:]:
            simulation.step(command, touched=touched)
        start = _now(task, seed, simulation, side, before, np.stack(commands))
        _, distance = _moved(simulation, start, task.path(start), 1.0)
    return None if touched.any() or distance > REACH_TOLERANCE / 2 else start


def _now(
    task: Task, seed: int, simulation: Simulation, side: Side, before: np.ndarray, commands: Float32[np.ndarray, "f 25"]
) -> Start:
    """The start where a simulation is now, after the last of these commands."""
    base, names = simulation.base(), [simulation.model.geom(i).name for i in range(simulation.model.ngeom)]
    things = [_to_robot(place, base) for place in simulation.objects()]
    line = simulation.data.geom("LINE").xpos if "LINE" in names else None
    return Start(
        task=task,
        seed=seed,
        fps=simulation.fps,
        scene=simulation.scene,
        side=side,
        snapshot=simulation.snapshot(),
        command=commands[-1],
        object=things[0],
        obstacle=things[1] if len(things) > 1 else None,
        line=None if line is None else float(_to_robot(line, base)[0]),
        base=base,
        turns=simulation.turns(),
        before=before,
        lead_in=commands[1:],
    )


def _raised(simulation: Simulation, rng: Generator) -> Float32[np.ndarray, "25"] | None:
    """A pose with both hands above the table, outside of where things stand. None where a hand cannot get there."""
    pose = neutral()
    for side, sign in SIDES.items():
        x, y, z = rng.uniform((0.4, 0.36, 0.16), (0.5, 0.46, 0.3))
        point = np.array([x, sign * y, simulation.scene.table_top + z])
        pose[arm_slice(side)], distance = simulation.reach(side, point, pose, np.zeros(3))
        pose[INDEX[f"{side}_HAND_CLOSURE"]] = rng.uniform(0, 1)
        if distance > REACH_TOLERANCE / 2:
            return None
    return pose


def _sway(rng: Generator) -> Sway:
    """As the robot sways in its own behaviour when it works at the table; the base stands still."""
    sway, _, _ = random_temper(rng)
    amplitude = np.minimum(sway.amplitude, CALM)
    amplitude[-2:] = 0
    return sway._replace(amplitude=amplitude)


def _to_robot(point: Point, base: Point) -> Point:
    """A point of the world as seen from a base at `(x, y, heading)`."""
    (x, y), (cos, sin) = point[:2] - base[:2], (np.cos(base[2]), np.sin(base[2]))
    return np.array([cos * x + sin * y, cos * y - sin * x, point[2]])


# --- motions ---


def _missed(points: list[Waypoint], miss: Float64[np.ndarray, "3"]) -> list[Waypoint]:
    """A path with an aim error: its last move is made longer or shorter, and the rest of the error displaces it."""
    before, goal = points[-2].where, points[-1].where
    length = float(np.linalg.norm(goal - before))
    direction = (goal - before) / length
    along = float(miss @ direction)
    aside = miss - along * direction
    moved = [Waypoint(where + aside, duration) for where, duration in points]
    moved[-1] = moved[-1]._replace(where=before + aside + max(0.0, length + along) * direction)
    return moved


def _moved(
    simulation: Simulation, start: Start, points: Sequence[Waypoint], pace: float
) -> tuple[Float32[np.ndarray, "n 25"], float]:
    """Commands that lead the hand through points, and how far in m it is from one of them at worst.

    From point to point the hand goes straight, with minimum jerk; inverse kinematics follows it frame by frame.
    """
    arm, hand, command, worst = arm_slice(start.side), INDEX[f"{start.side}_HAND_CLOSURE"], start.command.copy(), 0.0
    at, closure, commands = _to_robot(simulation.hand(start.side), start.base), float(command[hand]), []
    for where, duration in points:
        count, distance = max(1, round(duration * pace * start.fps)), 0.0
        move = Move(np.append(at, closure), np.append(where, FIST), begin=0.0, duration=float(count))
        for i in range(1, count + 1):
            *point, grip = move.at(float(i))
            command = command.copy()
            command[arm], distance = simulation.reach(
                start.side, to_world(np.array(point), start.base), command, start.base
            )
            command[hand] = grip
            commands.append(command)
        at, closure, worst = where, FIST, max(worst, distance)
    return np.stack(commands), worst


def _ahead(start: Start) -> Point:
    """Level, from the shoulder's side of the robot to the object."""
    way = start.object * [1, 1, 0] - [0.0, 0.1 * SIDES[start.side], 0.0]
    return way / np.linalg.norm(way)


def _through(
    start: Start, direction: Point, *, height: float, gap: float, beyond: float, time: float
) -> list[Waypoint]:
    """Beside the object, `gap` m before its middle, then to `beyond` m past it, at a height in m above it."""
    middle = start.object + np.array([0, 0, height])
    before, goal = middle - gap * direction, middle + beyond * direction
    return [Waypoint(before + np.array([0, 0, 0.14]), 0.8), Waypoint(before, 0.4), Waypoint(goal, time)]


def _touch_path(start: Start) -> list[Waypoint]:
    return _through(start, _ahead(start), height=0.02, gap=0.2, beyond=0.0, time=0.6)


def _push_path(start: Start) -> list[Waypoint]:
    beyond = (start.line or 0.0) - start.object[0]
    return _through(start, np.array([1.0, 0, 0]), height=0.02, gap=0.21, beyond=beyond - 0.04, time=0.9)


def _topple_path(start: Start) -> list[Waypoint]:
    half_height = start.object[2] - start.scene.table_top
    return _through(start, _ahead(start), height=0.75 * half_height, gap=0.2, beyond=0.1, time=0.6)


def _avoid_path(start: Start) -> list[Waypoint]:
    """From the outside, past the obstacle."""
    inwards = np.array([0.0, -SIDES[start.side], 0.0])
    return _through(start, inwards, height=0.02, gap=0.2, beyond=0.0, time=0.6)


# --- what lies on the table ---


def _thing(
    rng: Generator,
    top: float,
    near: float,
    kinds: Sequence[Shape],
    *,
    ahead: tuple[float, float],
    aside: tuple[float, float] = (0.02, 0.2),
) -> tuple[Point, str]:
    """The object that is to be handled, on one side of the table: green to blue, as no table, line or obstacle is."""
    shape, half_height = random_shape(rng, 1.2, kinds)
    x, y = near + rng.uniform(*ahead), rng.choice([-1, 1]) * rng.uniform(*aside)
    colour = hsv_to_rgb(rng.uniform(0.3, 0.65), rng.uniform(0.55, 0.75), rng.uniform(0.5, 0.75))
    place = np.array([x, y, top + half_height])
    turn, mass = rng.uniform(-0.3, 0.3), rng.uniform(0.15, 0.4)
    return place, body(0, shape, tuple(place.tolist()), colour, turn=turn, mass=mass)


def _touch_things(rng: Generator, top: float, near: float) -> Things:
    return Things([_thing(rng, top, near, ("box", "tall box", "cylinder"), ahead=(0.14, 0.3))[1]], [])


def _push_things(rng: Generator, top: float, near: float) -> Things:
    (x, y, _), block = _thing(rng, top, near, ("box",), ahead=(0.2, 0.25))
    middle = (x + rng.uniform(0.1, 0.14), y, top)
    return Things([block], [stripe("LINE", middle, STRIPE, LINE)])


def _topple_things(rng: Generator, top: float, near: float) -> Things:
    return Things([_thing(rng, top, near, ("tall box",), ahead=(0.14, 0.28))[1]], [])


def _avoid_things(rng: Generator, top: float, near: float) -> Things:
    """The obstacle is a post between the robot and the object."""
    (x, y, _), target = _thing(rng, top, near, ("box", "tall box", "cylinder"), ahead=(0.26, 0.32), aside=(0.02, 0.12))
    half_height = rng.uniform(0.1, 0.13)
    place = (x - rng.uniform(0.17, 0.2), y - np.sign(y) * rng.uniform(0.0, 0.04), top + half_height)
    post = body(1, f'type="cylinder" size="0.035 {half_height}"', place, OBSTACLE, turn=0.0, mass=0.3)
    return Things([target, post], [])


# --- what physics calls success ---


def _touched(start: Start, facts: Facts) -> bool:
    return bool(facts.touched[0, 0] >= 0)


def _over_the_line(start: Start, facts: Facts) -> bool:
    x, _, z = _to_robot(facts.objects[0], start.base)
    return start.line is not None and bool(x > start.line and z > start.scene.table_top)


def _toppled(start: Start, facts: Facts) -> bool:
    return tilt(start, facts) >= TOPPLED


def _hit(start: Start, facts: Facts) -> bool:
    """The obstacle was touched, by whatever part of the robot, before the object or in the same frame."""
    hit, done = facts.touched[1, 1], facts.touched[0, 0]
    return bool(hit >= 0 and (done < 0 or hit <= done))


def tilt(start: Start, facts: Facts) -> float:
    """By how many rad the object is tilted against how it stood at the start."""
    upright = (facts.turns[0] @ start.turns[0].T)[2, 2]
    return float(np.arccos(np.clip(upright, -1, 1)))


_ALL = (
    Task(
        id="touch",
        label="touch",
        sentence="Touch the object with a hand.",
        seconds=3.0,
        things=_touch_things,
        path=_touch_path,
        succeeded=_touched,
    ),
    Task(
        id="push",
        label="push over the line",
        sentence="Push the block over the white line.",
        seconds=3.0,
        things=_push_things,
        path=_push_path,
        succeeded=_over_the_line,
    ),
    Task(
        id="topple",
        label="knock over",
        sentence="Knock over the tall box.",
        seconds=3.0,
        things=_topple_things,
        path=_topple_path,
        succeeded=_toppled,
    ),
    Task(
        id="avoid",
        label="touch past the obstacle",
        sentence="Touch the object, but not the red post in front of it.",
        seconds=3.0,
        things=_avoid_things,
        path=_avoid_path,
        succeeded=_touched,
        failed=_hit,
    ),
)
TASKS: dict[str, Task] = {task.id: task for task in _ALL}
