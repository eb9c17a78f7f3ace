"""The skeleton of the twin's robot, which says where its arms are in its own picture without running physics."""

from functools import cache

from worldline.files import read_json
from worldline.nn.kinematics import Skeleton
from worldline.rundir import from_json
from worldline.twin.scene import MODEL


@cache
def twin_skeleton() -> Skeleton:
    """Arms and hands, as the camera of the table sees them (`scripts/skeleton.py` writes the file)."""
    path = MODEL.with_name("skeleton.json")
    return from_json(Skeleton, read_json(path), path)
