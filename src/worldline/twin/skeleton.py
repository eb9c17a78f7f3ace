"""The skeleton of the twin's robot, which says where its arms are in its own picture without running physics."""

from dataclasses import replace
from functools import cache

from worldline.files import read_json
from worldline.nn.kinematics import Camera, Skeleton
from worldline.rundir import from_json
from worldline.twin.scene import MODEL, Framing


@cache
def twin_skeleton(view: Framing = "table") -> Skeleton:
    """Arms and hands, as the camera of a view sees them (`scripts/skeleton.py` writes the files)."""
    path = MODEL.with_name("skeleton.json")
    nearer = from_json(Skeleton, read_json(path), path)
    if view == "table":
        return nearer
    path = MODEL.with_name(f"camera_{view}.json")
    return replace(nearer, camera=from_json(Camera, read_json(path), path))
