"""A skeleton from a robot's URDF and the calibration of its camera, for the map of where the robot will be.

Only the XML is read: no meshes, no packages. What the skeleton is for: `nn/kinematics.py`, docs/states.md.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from worldline.nn.kinematics import Camera, Hinge, Link, Point, Quaternion, Skeleton, Vector
from worldline.schema import DataError, UsageError

TURNING = ("revolute", "continuous")
BETWEEN = (0.5, 1.0)
"""Shares of the way from a link's own joint to each joint after it where the link gets points, beside its beginning."""
_FIX = "Give a complete URDF; of a xacro file, what xacro makes of it."


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """A camera on a link, as calibrations have it: its axes are x to the right, y down and z ahead (ROS, OpenCV)."""

    link: str
    xyz: Vector
    """In m, in the link's axes."""
    rpy: Vector
    """Roll, pitch and yaw of the camera's axes, in rad, as in a URDF's `origin`."""
    fovy: float
    """Field of view from top to bottom, in degrees, of the square picture that the world sees."""


@dataclass(frozen=True)
class _Joint:
    """What a `joint` of the file says."""

    name: str
    kind: str
    parent: str
    child: str
    place: Vector
    turn: Quaternion
    axis: Vector
    follows: tuple[str, float, float] | None
    """The joint that this one mimics, by what factor and from what angle on."""


def skeleton_of_urdf(
    path: Path,
    camera: Mounted,
    *,
    states: Mapping[str, str] | None = None,
    shown: Collection[str] | None = None,
    radius: float = 0.04,
) -> Skeleton:
    """Links, hinges and points of a URDF, as a camera on one of its links sees them.

    Points are a link's beginning, the middle of the way to each joint after it, and that joint.

    Args:
        states: name of the state that turns a joint, by the joint's name; joints that are not in it, and those that
            slide, stay where the file has them; one that mimics another turns with it, unless it is in here itself.
            Not given: every joint that turns and mimics none, by its own name.
        shown: links that get points; all if not given. Each costs channels, so leave out what is never in view.
        radius: how thick links are, in m; a URDF says that by meshes alone.

    Raises:
        DataError: no such file, no URDF, or its links are no tree.
        UsageError: a link or joint that the URDF does not have, a joint that does not turn.
    """
    joints = _joints(path)
    order = _ordered(path, joints)
    if states is None:
        states = {joint.name: joint.name for joint in joints if joint.kind in TURNING and joint.follows is None}
    _refuse_unknown(path, [camera.link, *(shown or ())], order, what="link")
    _refuse_unknown(path, states, [joint.name for joint in joints if joint.kind in TURNING], what="joint that turns")
    number = {name: i for i, name in enumerate(order)}
    arriving, named = {joint.child: joint for joint in joints}, {joint.name: joint for joint in joints}
    links = [_link(arriving.get(name), number, named, states) for name in order]
    points = [
        Point(link=number[name], place=place, radius=radius)
        for name in order
        if shown is None or name in shown
        for place in _places([joint.place for joint in joints if joint.parent == name])
    ]
    turn = _product(_turned(camera.rpy), (0.0, 1.0, 0.0, 0.0))  # from z ahead, y down to z behind, y up
    seen = Camera(link=number[camera.link], place=camera.xyz, turn=turn, fovy=camera.fovy)
    return Skeleton(links=tuple(links), points=tuple(points), camera=seen)


def _joints(path: Path) -> list[_Joint]:
    """All joints of the file. Raises `DataError` where it cannot be read as a URDF."""
    if not path.is_file():
        raise DataError(path, expected="a URDF", found="no file", fix=_FIX)
    try:
        root = ElementTree.parse(path).getroot()
        found = [_joint(one) for one in root.findall("joint")]
    except (ElementTree.ParseError, ValueError, KeyError) as error:
        raise DataError(path, expected="a URDF", found=f"{type(error).__name__}: {error}", fix=_FIX) from error
    if root.tag != "robot" or not found:
        raise DataError(path, expected="a robot with joints", found=f"<{root.tag}> with {len(found)}", fix=_FIX)
    return found


def _joint(joint: Element) -> _Joint:
    """Raises `KeyError` for an attribute that is not there, `ValueError` for what is no number."""
    name, mimic = joint.attrib["name"], joint.find("mimic")
    parent, child = joint.find("parent"), joint.find("child")
    if parent is None or child is None:
        raise ValueError(f"joint {name} without a parent or child")
    ends = parent.attrib["link"], child.attrib["link"]
    follows = None
    if mimic is not None:
        follows = (mimic.attrib["joint"], float(mimic.get("multiplier", 1)), float(mimic.get("offset", 0)))
    place, rpy = (_vector(joint.find("origin"), key, (0.0, 0.0, 0.0)) for key in ("xyz", "rpy"))
    kind, axis = joint.attrib["type"], _vector(joint.find("axis"), "xyz", (1.0, 0.0, 0.0))
    if (length := math.hypot(*axis)) == 0 and kind in TURNING:
        raise ValueError(f"joint {name} turns about 0 0 0")
    x, y, z = (value / (length or 1.0) for value in axis)  # exporters write 0 0 0 for joints that are fixed
    return _Joint(name, kind, *ends, place, _turned(rpy), (x, y, z), follows)


def _vector(element: Element | None, key: str, otherwise: Vector) -> Vector:
    if element is None or key not in element.attrib:
        return otherwise
    x, y, z = (float(value) for value in element.attrib[key].split())
    return x, y, z


def _ordered(path: Path, joints: list[_Joint]) -> list[str]:
    """The links, every parent before its children. Raises `DataError` where they are no tree."""
    children = [joint.child for joint in joints]
    roots = sorted({joint.parent for joint in joints} - set(children))
    order = roots[:1]
    for name in order:  # grows
        order += [joint.child for joint in joints if joint.parent == name]
        if len(order) > len(joints) + 1:
            break
    if len(roots) != 1 or len(order) != len(joints) + 1 or len(set(children)) != len(children):
        found = f"{len(roots)} without a parent and {len(joints)} joints, of which {len(order) - 1} hang from the first"
        raise DataError(path, expected="links that hang from one", found=found, fix=_FIX)
    return order


def _link(
    joint: _Joint | None, number: Mapping[str, int], joints: Mapping[str, _Joint], states: Mapping[str, str]
) -> Link:
    """The link at the end of a joint; the root's has none."""
    if joint is None:
        return Link(parent=None, place=(0.0, 0.0, 0.0), turn=(1.0, 0.0, 0.0, 0.0))
    turn, hinges = joint.turn, ()
    name, factor, start = _turned_by(joint, joints, states)
    if joint.kind in TURNING and name in states:
        hinges = (Hinge(state=states[name], axis=joint.axis, scale=factor),)
        half = start / 2
        x, y, z = (math.sin(half) * part for part in joint.axis)
        turn = _product(turn, (math.cos(half), x, y, z))
    return Link(parent=number[joint.parent], place=joint.place, turn=turn, hinges=hinges)


def _turned_by(joint: _Joint, joints: Mapping[str, _Joint], states: Mapping[str, str]) -> tuple[str, float, float]:
    """The joint whose state turns a joint, by what factor and from what angle on: itself, or one that it mimics.

    Where the data have a state of a joint that mimics another, it is turned by its own.
    """
    name, factor, start = joint.name, 1.0, 0.0
    for _ in joints:  # no more links in the chain than that, even where a file's joints mimic each other in a circle
        if name in states or name not in joints or (follows := joints[name].follows) is None:
            break
        name, factor, start = follows[0], factor * follows[1], start + factor * follows[2]
    return name, factor, start


def _places(ends: list[Vector]) -> list[Vector]:
    """Points of a link: its beginning, and on the way to joints that are elsewhere."""
    found = [(0.0, 0.0, 0.0)]
    for x, y, z in ends:
        found += [(share * x, share * y, share * z) for share in BETWEEN if math.hypot(x, y, z) > 1e-3]
    return found


def _refuse_unknown(path: Path, given: Collection[str], known: Collection[str], *, what: str) -> None:
    if unknown := sorted({*given} - {*known}):
        raise UsageError(f"{path} has no {what} {', '.join(unknown[:3])}; it has {', '.join(sorted(known)[:40])}")


def _turned(rpy: Vector) -> Quaternion:
    """Roll about x, then pitch about y, then yaw about z, all of the fixed axes."""
    (cr, sr), (cp, sp), (cy, sy) = ((math.cos(angle / 2), math.sin(angle / 2)) for angle in rpy)
    return _product(_product((cy, 0.0, 0.0, sy), (cp, 0.0, sp, 0.0)), (cr, sr, 0.0, 0.0))


def _product(one: Quaternion, other: Quaternion) -> Quaternion:
    """First turn as `other`, then as `one`."""
    (w, x, y, z), (a, b, c, d) = one, other
    return (
        w * a - x * b - y * c - z * d,
        w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    )
