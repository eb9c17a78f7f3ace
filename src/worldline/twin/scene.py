"""The robot of the twin, and random rooms around it as MJCF.

The robot is a wheeled humanoid of simple shapes with EVE's kinematics (`robot.xml`). A **state** and a **command** are
the same 25 numbers, those of the 1X data (`LAYOUT`): 21 joint angles in rad, measured or wanted, two hand closures
(0 open .. 1 closed), forward velocity in m/s and turning velocity in rad/s (left positive).

Small models can learn the images: no shadows, flat light, muted colours that vary slowly over a surface and little
between surfaces, and objects of 10 to 24 cm (seven pixels of 64 at arm's length), which are the most visible.
"""

from collections.abc import Callable, Iterable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32
from numpy.random import Generator

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
RECORD = "twin.json"
"""Beside data of the twin: what they were generated from, the view among it."""
Framing = Literal["room", "table"]
"""What the head camera shows: the room, in 90 degrees as EVE's does, or the table, in 72 degrees and looking down by 12
degrees more, so that what the hands do is seen larger."""
FRAMED = 'xyaxes="0 -1 0 0.1736482513311082 0 0.9848077400232231" fovy="90.0"'
"""The camera in `robot.xml`: its picture's axes, and its field of view in degrees."""
NEARER = 'xyaxes="0 -1 0 0.3746065934159120 0 0.9271838545667874" fovy="72.0"'
Colour = tuple[float, ...]
"""Red, green and blue, 0..1."""
Shape = Literal["box", "tall box", "cylinder", "ball", "capsule"]
TABLES = {
    "wood": ((0.05, 0.2, 0.42), (0.11, 0.4, 0.6)),
    "pale": ((0.0, 0.0, 0.45), (1.0, 0.1, 0.62)),
    "painted": ((0.0, 0.15, 0.4), (1.0, 0.35, 0.58)),
}
"""Ranges of their colours: hue, saturation and value."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A room with the robot in it: everything a `Simulation` is built from."""

    xml: str
    """MJCF, complete in itself."""
    objects: tuple[str, ...]
    """Bodies that can be moved."""
    table_top: float
    """Height of the table's surface in m."""


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


class Things(NamedTuple):
    """What lies on a table."""

    bodies: list[str]
    """Of each object its geoms as MJCF, in the order of their numbers (`body`)."""
    painted: list[str]
    """Geoms that belong to the table, such as a line."""


Placing = Callable[[Generator, float, float], Things]
"""Draws what lies on a table, given the height of its surface and how far ahead of the robot it begins, in m."""


def random_scene(rng: Generator, view: Framing = "room", *, placing: Placing | None = None) -> Scene:
    """Draw a room. The robot stands at the origin and looks along +x at a table within reach.

    At the table, there are one to three objects in place of two to four, larger by a fifth; or what `placing` draws.
    """
    top = rng.uniform(0.84, 0.94)
    near = rng.uniform(0.34, 0.40)
    objects, painted = Things(_objects(rng, top, near, view), []) if placing is None else placing(rng, top, near)
    x, y = rng.uniform(-0.6, 0.6, 2)
    strength = f'diffuse="{_numbers(rng.uniform(0.2, 0.3) * rng.uniform(0.9, 1.0, 3))}"'
    light = f'<light directional="true" pos="0 0 3" dir="{x} {y} -1" {strength} specular="0 0 0" castshadow="false"/>'
    # The robot comes first: its base then has the first three entries of qpos and qvel.
    things = [light, *_room(rng), *_table(rng, top, near), *painted, *objects]
    hue = rng.choice([rng.uniform(0.05, 0.12), rng.random()])
    floor = hsv_to_rgb(hue, rng.uniform(0.03, 0.2), rng.uniform(0.38, 0.52))
    surfaces = _surface(rng, "floor", floor)
    surfaces += _surface(rng, "table", hsv_to_rgb(*rng.uniform(*TABLES[rng.choice([*TABLES])])))
    ambient, diffuse = rng.uniform((0.5, 0.2), (0.62, 0.28))
    text = MODEL.read_text(encoding="utf-8")
    xml = text[text.index("<mujoco") :].rstrip()
    for old, new in {
        "0.56 0.56 0.56": _numbers([ambient] * 3),
        "0.24 0.24 0.24": _numbers([diffuse] * 3),
        "\n  </asset>": surfaces + "\n  </asset>",
        "\n  </worldbody>": "\n" + "\n".join(things) + "\n  </worldbody>",
        FRAMED: NEARER if view == "table" else FRAMED,
    }.items():
        xml = xml.replace(old, new)
    return Scene(xml=xml, objects=tuple(f"OBJECT_{i}" for i in range(len(objects))), table_top=top)


def _room(rng: Generator) -> list[str]:
    """Floor, ceiling and four walls, each of one colour; in the wall's tones, a few flat or boxy things along them.

    On the wall ahead a poster or window and at most one cupboard, on a side wall a door.
    """
    front, back, left, right, height = *rng.uniform((1.5, 1.2, 1.4, 1.4), (2.8, 2.2, 2.6, 2.6)), 2.8
    wall = hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.25), rng.uniform(0.52, 0.72))
    tone = partial(_nearby, rng, wall)
    middle, side, up = (front - back) / 2, (left - right) / 2, height / 2
    half, width = (front + back) / 2 + 0.1, (left + right) / 2 + 0.1
    things = [
        _box((middle, side, -0.05), (half, width, 0.05), "floor"),
        _box((middle, side, height), (half, width, 0.05), (0.9, 0.9, 0.88)),
        _box((front + 0.05, side, up), (0.05, width, up), wall),
        _box((-back - 0.05, side, up), (0.05, width, up), tone()),
        _box((middle, left + 0.05, up), (half, 0.05, up), tone()),
        _box((middle, -right - 0.05, up), (half, 0.05, up), tone()),
    ]
    y, z, half_width, half_height = rng.uniform((-0.8, 1.4, 0.3, 0.25), (0.8, 1.8, 0.6, 0.45))
    things.append(_box((front, y, z), (0.02, half_width, half_height), tone(rng.uniform(0.75, 1.15))))
    for sign in rng.permutation([-1, 1])[: rng.integers(0, 2)]:
        depth, half_width, half_height = rng.uniform((0.15, 0.25, 0.4), (0.3, 0.5, 0.95))
        position = (front - depth, y + sign * rng.uniform(0.9, 1.2), half_height)
        things.append(_box(position, (depth, half_width, half_height), tone(rng.uniform(0.65, 0.95))))
    wall_y, door = left if rng.random() < 0.5 else -right, tone(rng.uniform(0.75, 1.05))
    return [*things, _box((rng.uniform(0.4, 1.0), wall_y, 1.0), (0.45, 0.02, 1.0), door)]


def _table(rng: Generator, top: float, near: float) -> list[str]:
    """A table on legs, a closed counter or a round table, from `near` m ahead of the robot's middle on."""
    half_depth, half_width = rng.uniform(0.28, 0.4), rng.uniform(0.55, 0.85)
    x, z, half_height = near + half_depth, top - 0.02, (top - 0.04) / 2
    leg = hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.3), rng.uniform(0.3, 0.7))
    board = _box((x, 0.0, z), (half_depth, half_width, 0.02), "table")
    match rng.choice(["table", "counter", "round"]):
        case "table":
            ends = [(x, sign * (half_width - 0.05), half_height) for sign in (-1, 1)]
            return [board, *(_box(end, (half_depth - 0.05, 0.03, half_height), leg) for end in ends)]
        case "counter":
            size = (half_depth - 0.05, half_width - 0.02, half_height)
            return [board, _box((x + 0.05, 0.0, half_height), size, leg)]
        case _:
            radius = rng.uniform(0.5, 0.6)
            x, look = near + radius, f'rgba="{_numbers(leg)} 1"'
            plate = f'<geom type="cylinder" pos="{x} 0 {z}" size="{radius} 0.02" material="table"/>'
            return [f'{plate}<geom type="cylinder" pos="{x} 0 {z / 2}" size="0.08 {z / 2}" {look}/>']


def _objects(rng: Generator, top: float, near: float, view: Framing) -> list[str]:
    """Two to four objects on the table, apart from one another, in hues spread over the circle; see `random_scene`."""
    fewer, scale, half = (1, 1.2, 0.26) if view == "table" else (0, 1.0, 0.36)
    count = int(rng.integers(2, 5)) - fewer
    hues = (rng.random() + np.arange(count) / count) % 1
    slots = np.linspace(-half, half, count) if count > 1 else np.array([rng.uniform(-half, half)])
    bodies = []
    for i in range(count):
        x, y = near + rng.uniform(0.1, 0.28), slots[i] + rng.uniform(-0.04, 0.04)
        colour = hsv_to_rgb(hues[i], rng.uniform(0.45, 0.65), rng.uniform(0.5, 0.75))
        shape, height = random_shape(rng, scale)
        place = (x, y, top + height)
        bodies.append(body(i, shape, place, colour, turn=rng.uniform(0, np.pi), mass=rng.uniform(0.15, 0.4)))
    return bodies


def body(number: int, shape: str, place: tuple[float, ...], colour: Colour, *, turn: float, mass: float) -> str:
    """An object that can be moved: its geom's attributes, its middle in m, its turn in rad, and its mass in kg."""
    x, y, z = place
    geom = f'<geom {shape} rgba="{_numbers(colour)} 1" mass="{mass}"/>'
    return f'<body name="OBJECT_{number}" pos="{x} {y} {z}" euler="0 0 {turn}"><freejoint/>{geom}</body>'


def random_shape(rng: Generator, scale: float, kinds: Sequence[Shape] = get_args(Shape)) -> tuple[str, float]:
    """An object's geom attributes and its half height, `scale` times the usual size."""
    rolling = 'condim="6" friction="0.8 0.01 0.008"'  # so that what is round comes to rest
    match rng.choice(kinds):
        case "box":
            size = scale * rng.uniform(0.05, 0.075, 3)
            return f'type="box" size="{_numbers(size)}"', size[2]
        case "tall box":
            width, depth, height = scale * rng.uniform((0.045, 0.045, 0.09), (0.06, 0.06, 0.12))
            return f'type="box" size="{width} {depth} {height}"', height
        case "cylinder":
            radius, height = scale * rng.uniform((0.045, 0.08), (0.06, 0.12))
            return f'type="cylinder" size="{radius} {height}"', height
        case "ball":
            radius = scale * rng.uniform(0.06, 0.08)
            return f'type="sphere" size="{radius}" {rolling}', radius
        case _:
            radius, half = scale * rng.uniform((0.045, 0.04), (0.06, 0.07))
            return f'type="capsule" size="{radius} {half}" euler="1.5708 0 0" {rolling}', radius


def _box(position: tuple[float, ...], half_size: tuple[float, ...], paint: Colour | str) -> str:
    """A fixed box of one colour, or of a named material."""
    look = f'material="{paint}"' if isinstance(paint, str) else f'rgba="{_numbers(paint)} 1"'
    return f'<geom type="box" pos="{_numbers(position)}" size="{_numbers(half_size)}" {look}/>'


def stripe(name: str, position: tuple[float, float, float], half_size: tuple[float, float], colour: Colour) -> str:
    """Paint on a surface: a flat box around a place on it, which touches nothing."""
    x, y, z = position
    size, look = _numbers((*half_size, 0.001)), f'rgba="{_numbers(colour)} 1" contype="0" conaffinity="0"'
    return f'<geom name="{name}" type="box" pos="{x} {y} {z + 0.001}" size="{size}" {look}/>'


def _surface(rng: Generator, name: str, colour: Colour) -> str:
    """A material whose colour drifts gently from the middle to the edges."""
    edge = _nearby(rng, colour, rng.uniform(0.75, 1.1))
    colours = f'rgb1="{_numbers(colour)}" rgb2="{_numbers(edge)}"'
    return f"""
    <texture name="{name}" type="2d" builtin="gradient" {colours} width="64" height="64"/>
    <material name="{name}" texture="{name}" specular="0"/>"""


def _nearby(rng: Generator, colour: Colour, scale: float = 1.0) -> Colour:
    """A colour like the given one, `scale` times as bright."""
    return tuple(np.clip(np.array(colour) * scale * rng.uniform(0.85, 1.1), 0, 1).tolist())


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.5g}" for value in values)
