"""Write the twin's skeleton, as seen by the nearer camera, to src/worldline/twin/skeleton.json. Needs MuJoCo.

The other view's camera goes to camera_room.json beside it; all else is the same.

python scripts/skeleton.py
"""

import mujoco
import numpy as np

from worldline.files import write_json
from worldline.nn.kinematics import Camera, Hinge, Link, Point, Skeleton
from worldline.rundir import to_json
from worldline.twin.scene import CAMERA, FINGER_CLOSED, MODEL, Framing, random_scene

ROOT = "TORSO"
"""Arms and head hang from it; what is below it moves the camera too."""
ALONG = {"UPPER_ARM": 3, "FOREARM": 3, "INDEX": 2, "MIDDLE": 2, "RING": 2, "THUMB": 2}
"""Points along the capsules of links."""


def skeleton(view: Framing = "table") -> Skeleton:
    """Arms, hands and head."""
    xml = random_scene(np.random.default_rng(0), view).xml
    model = mujoco.MjModel.from_xml_string(xml)
    names = [model.body(i).name for i in range(model.nbody)]
    below = [ROOT] + [name for name in names if name.startswith(("LEFT_", "RIGHT_", "HEAD"))]
    numbers = [names.index(name) for name in below]
    links = tuple(_link(model, number, numbers) for number in numbers)
    points = tuple(point for place, number in enumerate(numbers[1:], 1) for point in _points(model, number, place))
    eye = model.camera(CAMERA)
    where = {"place": tuple(eye.pos.tolist()), "turn": tuple(eye.quat.tolist())}
    camera = Camera(link=numbers.index(eye.bodyid[0]), fovy=float(eye.fovy[0]), **where)
    return Skeleton(links=links, points=points, camera=camera)


def _link(model: mujoco.MjModel, number: int, numbers: list[int]) -> Link:
    body = model.body(number)
    if number == numbers[0]:
        return Link(parent=None, place=(0.0, 0.0, 0.0), turn=(1.0, 0.0, 0.0, 0.0))
    hinges = []
    for joint in (model.joint(body.jntadr[0] + i) for i in range(body.jntnum[0])):
        assert not joint.pos.any(), f"{joint.name} does not turn about its link's origin"
        finger = joint.name.split("_")[1] in ("INDEX", "MIDDLE", "RING", "THUMB")
        state = f"{joint.name.split('_')[0]}_HAND_CLOSURE" if finger else joint.name
        scale = FINGER_CLOSED if finger else 1.0
        hinges.append(Hinge(state=state, axis=tuple(joint.axis.tolist()), scale=scale))
    place, turn = tuple(body.pos.tolist()), tuple(body.quat.tolist())
    return Link(parent=numbers.index(body.parentid[0]), place=place, turn=turn, hinges=tuple(hinges))


def _points(model: mujoco.MjModel, number: int, place: int) -> list[Point]:
    found = []
    name = model.body(number).name.partition("_")[2]
    for geom in (model.geom(model.body(number).geomadr[0] + i) for i in range(model.body(number).geomnum[0])):
        if name in ("", "SCAPULA", "SHOULDER"):  # out of view
            continue
        turn = np.empty(9)
        mujoco.mju_quat2Mat(turn, geom.quat)
        if name == "PALM":
            ends = [(0.0, 0.0, -0.03), (0.03, 0.0, -0.1), (-0.03, 0.0, -0.1)]
        else:
            half = geom.size[1] * turn.reshape(3, 3)[:, 2]
            ends = [geom.pos + share * half for share in np.linspace(-1, 1, ALONG.get(name, 1))]
            ends = ends if name in ALONG else [geom.pos]
        radius = float(geom.size[0])
        found += [Point(link=place, place=tuple(map(float, end)), radius=radius) for end in ends]
    return found


if __name__ == "__main__":
    write_json(MODEL.with_name("skeleton.json"), to_json(Skeleton, skeleton()))
    write_json(MODEL.with_name("camera_room.json"), to_json(Camera, skeleton("room").camera))
