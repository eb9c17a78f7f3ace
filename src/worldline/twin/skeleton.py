"""The skeleton of the twin's robot, which says where its arms are in its own picture without running physics."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

from worldline.files import read_json
from worldline.nn.kinematics import Camera, Skeleton
from worldline.rundir import from_json
from worldline.twin.scene import MODEL, RECORD, Framing


@cache
def twin_skeleton(view: Framing = "table") -> Skeleton:
    """Arms and hands, as the camera of a view sees them (`scripts/skeleton.py` writes the files)."""
    path = MODEL.with_name("skeleton.json")
    nearer = from_json(Skeleton, read_json(path), path)
    if view == "table":
        return nearer
    path = MODEL.with_name(f"camera_{view}.json")
    return replace(nearer, camera=from_json(Camera, read_json(path), path))


def unseen_view(skeleton: Skeleton, data: Path) -> Framing | None:
    """The view in which a skeleton of the twin draws, if nothing beside the data says that their pictures show it.

    None for the skeleton of any other robot. Robots with the twin's states have other cameras (1X's EVE, for one).
    """
    record = data / RECORD
    shown = (read_json(record).get("view") or "room") if record.is_file() else None
    views: tuple[Framing, ...] = get_args(Framing)
    return next((view for view in views if view != shown and twin_skeleton(view) == skeleton), None)
